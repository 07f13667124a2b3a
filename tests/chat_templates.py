"""Chat templates of the kinds that models have, each with its special tokens and how it ends a turn."""

from dataclasses import replace
from typing import NamedTuple

from npgpt.text.added_tokens import Flags
from npgpt.text.tokenizer import BPETokenizer


class Kind(NamedTuple):
    source: str
    special: tuple[str, ...]  # the first is the end of text
    end_of_turn: str | None
    bos: str
    strips: tuple[str, ...] = ()  # tokens that take the white space behind them


CHATML = """{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + \
'<|im_end|>' + '\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""

# as SmolLM2: a system message where there is none
SYSTEM = """{% for message in messages %}
{% if loop.first and messages[0]['role'] != 'system' %}
{{ '<|im_start|>system\nBe kind.<|im_end|>\n' }}
{%- endif %}
{{- '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}
{%- endfor %}
{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}
"""

# as Llama 3: a beginning, names between two tokens, trimmed contents, a date where none is given
HEADERS = """{{- bos_token }}
{%- if not date is defined %}{%- set date = "26 Jul 2024" %}{%- endif %}
{#- the system message is taken out, so that it can be slotted in #}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{%- macro header(role) %}{{- "<|head|>" ~ role ~ "<|/head|>\n\n" }}{%- endmacro %}
{{- header("system") + "Today: " + date + "\n\n" }}
{%- if tools is not none %}{{- tools|tojson(indent=4) }}{%- endif %}
{{- system_message + "<|eot|>" }}
{%- for message in messages %}
    {%- if not (message.role == 'ipython' or 'tool_calls' in message) %}
        {{- header(message['role']) + message['content'] | trim + '<|eot|>' }}
    {%- elif message.tool_calls|length != 1 %}
        {{- raise_exception("one call at a time") }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- header('assistant') }}{%- endif %}
"""

# as Llama 2: roles that take turns, the system message inside the first question, an end behind answers
INST = """{% set ns = namespace(system='') %}{% if messages[0]['role'] == 'system' %}\
{% set ns.system = '<<SYS>>\n' + messages[0]['content'] + '\n<</SYS>>\n\n' %}\
{% set loop_messages = messages[1:] %}{% else %}{% set loop_messages = messages %}{% endif %}\
{% for message in loop_messages %}\
{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}\
{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}\
{% if loop.index0 == 0 %}{% set content = ns.system + message['content'] %}\
{% else %}{% set content = message['content'] %}{% endif %}\
{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}\
{% elif message['role'] == 'assistant' %}\
{% generation %}{{ ' ' + content.strip() + ' ' + eos_token }}{% endgeneration %}{% endif %}{% endfor %}"""

# as Phi 3: tokens that the template puts together, those of npgpt's own roles among them
BUILT = """{% for message in messages %}\
{{ '<|' + message['role'] + '|>' + '\n' + message['content'] + '<|end|>\n' }}{% endfor %}\
{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"""

# without tokens
PLAIN = """{% for message in messages %}\
{{ '\n' if not loop.first }}{{ message.role|upper + ':\n' + message.content }}{% endfor %}\
{% if add_generation_prompt %}{{ '\nASSISTANT:\n' }}{% endif %}"""

KINDS = {
    "chatml": Kind(CHATML, ("<|endoftext|>", "<|im_start|>", "<|im_end|>"), "<|im_end|>", "<|im_start|>"),
    "system": Kind(SYSTEM, ("<|im_end|>", "<|im_start|>", "<|endoftext|>"), "<|im_end|>", "<|im_start|>"),
    "headers": Kind(HEADERS, ("<|eot|>", "<|head|>", "<|/head|>", "<|begin|>"), "<|eot|>", "<|begin|>"),
    "inst": Kind(INST, ("</s>", "<s>", "[INST]", "[/INST]"), "</s>", "<s>"),
    "built": Kind(
        BUILT,
        ("<|endoftext|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"),
        "<|end|>",
        "<|endoftext|>",
    ),
    "plain": Kind(PLAIN, ("<|endoftext|>",), None, "<|endoftext|>"),
}
TEXT = (
    "um dois três, o mar e a terra; ola mundo, ola ola system user assistant <|im_start|> <|im_end|> [INST]\n"
)


def tokenizer_of(kind: Kind) -> BPETokenizer:
    """A byte-level BPE with the special tokens and the template of a kind."""
    plain = BPETokenizer.train([TEXT.encode() * 4], 290).vocabulary
    tokens = {name: i for name, i in plain.tokens.items() if name not in plain.special}
    special = {name: len(tokens) + n for n, name in enumerate(kind.special)}
    vocabulary = replace(plain, tokens=tokens | special, special=special, end_of_text=kind.special[0])
    flags = {name: Flags(rstrip=True) for name in kind.strips}
    named = {"bos_token": kind.bos, "eos_token": kind.special[0]}
    return BPETokenizer(replace(vocabulary, chat_template=kind.source, names=named, flags=flags))
