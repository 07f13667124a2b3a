"""Explanations side by side with others on the same Hugging Face folder: captum's attributions and inseq's,
Transformers' eager attention and hidden states.
"""

import numpy as np
import pytest

import npgpt
from npgpt.engine.traced import TracedGPT
from npgpt.explaining.attribution import METHODS, LabelSubject, Objective, Subject, integrated, noise
from npgpt.runtime.sampling import log_softmax
from npgpt.text.tokenizer import BPETokenizer
from tests.models import random_model
from tests.parity.test_transformers import FAMILY, our_model

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
captum = pytest.importorskip("captum.attr")
torch.set_num_threads(1)

IDS = [7, 3, 3, 11, 29, 0, 18, 5, 30, 200, 101]
TARGET, OTHER = 5, 9


@pytest.fixture(params=FAMILY)
def both(request, rng, tmp_path):
    """Our model and Transformers' of the folder that it wrote, with eager attention."""
    ours = our_model(rng, **FAMILY[request.param])
    ours.save_pretrained(tmp_path)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager").eval()
    return npgpt.load(tmp_path), theirs


def torch_objective(theirs):
    """log p(TARGET) - log p(OTHER) of token embeddings (n,T,C), as captum calls it."""

    def f(e):
        log_p = theirs(inputs_embeds=e).logits[:, -1].log_softmax(-1)
        return log_p[:, TARGET] - log_p[:, OTHER]

    return f


def of_captum(name, f, theirs, objective=None):
    """The attributions of every channel (T,C)."""
    e, nothing = torch.tensor(f.e)[None].requires_grad_(), torch.tensor(f.nothing)[None]
    objective = objective or torch_objective(theirs)
    if name == "gradient":
        found = captum.Saliency(objective).attribute(e, abs=False)
    elif name == "grad_x_input":
        found = captum.InputXGradient(objective).attribute(e)
    elif name == "integrated":
        how = {"n_steps": 300, "method": "gausslegendre", "internal_batch_size": 100}
        found = captum.IntegratedGradients(objective).attribute(e, nothing, **how)
    elif name == "smooth":  # the noise of captum's NoiseTunnel is torch's: here it is ours
        noised = (e + torch.tensor(noise(f.e))).detach().requires_grad_()
        found = captum.Saliency(objective).attribute(noised, abs=False).mean(0, keepdim=True)
    else:
        how = {"sliding_window_shapes": (1, e.shape[2]), "baselines": nothing}
        found = captum.Occlusion(objective).attribute(e, **how)
    return found[0].detach().numpy().astype(np.float64)


@pytest.mark.parametrize("name", METHODS)
def test_attributions_are_captums(name, both, measured):
    ours, theirs = both
    f = Subject(TracedGPT(ours), np.array(IDS, np.int32), Objective("logprob", TARGET, OTHER))
    found = integrated(f, tolerance=1e-5) if name == "integrated" else METHODS[name](f)
    channels = of_captum(name, f, theirs)
    if name in ("gradient", "smooth"):
        expected = np.linalg.norm(channels, axis=-1)
    else:  # each channel of a token has the whole of its occlusion
        expected = channels[:, 0] if name == "occlusion" else channels.sum(axis=-1)
    measured(f"{name}, against captum", np.abs(found - expected).max() / np.abs(expected).max(), 1e-4)


@pytest.mark.parametrize("name", ["gradient", "grad_x_input", "integrated"])
def test_attributions_of_a_label_are_captums(name, both, measured):
    """The label's probability among several, each a sum of log-probabilities of its tokens."""
    ours, theirs = both
    labels = [[TARGET], [OTHER, 8, 7], [2, 30]]

    def share(e):
        sums = []
        for label in labels:
            after = theirs.get_input_embeddings()(torch.tensor(label[:-1], dtype=torch.long))
            whole = torch.cat([e, after.expand(len(e), -1, -1)], dim=1)
            log_p = theirs(inputs_embeds=whole).logits[:, -len(label) :].log_softmax(-1)
            sums.append(log_p[:, range(len(label)), label].sum(-1))
        log_p = torch.stack(sums, dim=1).log_softmax(1)
        return log_p[:, 1] - log_p[:, 2]

    f = LabelSubject(TracedGPT(ours), np.array(IDS, np.int32), labels, Objective("logprob", 1, 2))
    found = integrated(f, tolerance=1e-5) if name == "integrated" else METHODS[name](f)
    channels = of_captum(name, f, theirs, share)
    expected = np.linalg.norm(channels, axis=-1) if name == "gradient" else channels.sum(axis=-1)
    error = np.abs(found - expected).max() / np.abs(expected).max()
    measured(f"{name} of a label, against captum", error, 1e-4)


def test_attention_is_transformers_eager(both, measured):
    ours, theirs = both
    with torch.no_grad():
        expected = torch.cat(theirs(torch.tensor([IDS]), output_attentions=True).attentions).numpy()
    measured("attention, against eager", np.abs(ours.attention(IDS) - expected).max(), 1e-5)


def test_the_lens_reads_transformers_hidden_states(both, measured):
    ours, theirs = both
    lens = ours.lens(IDS)
    with torch.no_grad():
        hidden = theirs(torch.tensor([IDS]), output_hidden_states=True).hidden_states[1:]
        # the last hidden state of all but GPT is behind the last norm already
        norm = getattr(theirs.base_model, "ln_f", getattr(theirs.base_model, "norm", None))
        before = [h if norm is None else norm(h) for h in hidden[:-1]]
        head = theirs.get_output_embeddings()
        expected = [head(h)[0].log_softmax(-1).numpy() for h in (*before, hidden[-1])]
    for layer, log_p in enumerate(expected):
        measured("lens, against the hidden states", np.abs(lens.log_probabilities(layer) - log_p).max(), 2e-4)
    assert lens.log_probabilities(-1).tobytes() == log_softmax(ours.logits([IDS])[0]).tobytes()


@pytest.mark.parametrize("fields", [{}, {"window": 5}], ids=["gpt-2", "gpt-3"])
def test_attributions_are_inseqs(fields, tmp_path, measured):
    """Of a text's next token; inseq's embedding that says nothing is that of the unknown token."""
    inseq = pytest.importorskip("inseq")
    text, tokenizer = "o gato subiu no", BPETokenizer.train([b"o gato subiu no telhado de zinco " * 20], 270)
    model = random_model(vocab_size=270, **fields)
    model.tokenizer = tokenizer
    model.save_pretrained(tmp_path)
    read = transformers.AutoTokenizer.from_pretrained(tmp_path)
    ids, target = tokenizer.encode(text), int(tokenizer.encode(f"{text} ")[-1])
    f = Subject(TracedGPT(model), ids.astype(np.int32), Objective("logit", target))
    f.nothing = np.tile(model.params["wte.weight"][read.unk_token_id], (len(ids), 1))
    names = {
        "gradient": ("saliency", {}),
        "grad_x_input": ("input_x_gradient", {}),
        "integrated": ("integrated_gradients", {"n_steps": 300}),
        "occlusion": ("occlusion", {}),
    }
    for name, (theirs, how) in names.items():
        attributed = inseq.load_model(str(tmp_path), theirs).attribute(
            text, f"{text} ", attributed_fn="logit", show_progress=False, **how
        )
        scores = attributed.sequence_attributions[0].target_attributions.numpy()[: len(ids), 0]
        if scores.ndim > 1:  # by channels
            scores = np.linalg.norm(scores, axis=-1) if name == "gradient" else scores.sum(axis=-1)
        found = integrated(f, tolerance=1e-5) if name == "integrated" else METHODS[name](f)
        if name == "occlusion":  # inseq keeps its size alone
            found = np.abs(found)
        measured(f"{name}, against inseq", np.abs(found - scores).max() / np.abs(scores).max(), 1e-4)
