"""One contender of decode.py in a process of its own.

`python -m benchmarks.generators NAME FILE THREADS` answers each line of stdin with one of JSON: "turn" with
{"prefill": prompt tokens a second, "decode": new tokens a second}, npgpt's "eight" with the tokens a second
of eight sessions together. An idle contender waits in read().
"""

import json
import os
import sys
import time
import urllib.request

import numpy as np

SIZES = {
    "124M": {},
    "4L x 128": {"n_layer": 4, "n_head": 4, "n_embd": 128, "block_size": 256, "vocab_size": 257},
}
PROMPT, NEW = 128, 64
IDS = np.random.default_rng(0).integers(0, 256, PROMPT)


class Npgpt:
    def __init__(self, path, threads):
        from npgpt.engine import kernels
        from npgpt.runtime import libnpgpt
        from npgpt.runtime.sampling import Sampling

        kernels.set_num_threads(threads)
        self.binding, self.model = libnpgpt, libnpgpt.Model.open(path)
        self.session = libnpgpt.Session(self.model)
        self.how = libnpgpt.sampling_struct(Sampling(0), 256)  # the end of text never comes

    def turn(self):
        self.session.reset()
        start = time.perf_counter()
        self.session.feed(IDS)
        read = time.perf_counter()
        for _ in range(NEW):
            self.session.feed([self.session.sample(self.how)])
        return {"prefill": PROMPT / (read - start), "decode": NEW / (time.perf_counter() - read)}

    def eight(self):
        many = [self.binding.Session(self.model) for _ in range(8)]
        for session in many:
            session.feed(IDS)
        start = time.perf_counter()
        for _ in range(NEW):
            ids = [session.sample(self.how) for session in many]
            self.binding.feed_many(many, ids)
        return 8 * NEW / (time.perf_counter() - start)


class LlamaCpp:
    def __init__(self, path, threads):
        import xllamacpp

        params = xllamacpp.CommonParams()
        params.model.path, params.n_ctx, params.n_parallel = path, 256, 1
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
        self.server = xllamacpp.Server(params)

    def turn(self):
        asked = {"prompt": IDS.tolist(), "n_predict": NEW, "temperature": 0, "ignore_eos": True}
        data = json.dumps(asked | {"cache_prompt": False}).encode()
        url = f"{self.server.listening_address}/completion"
        request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request) as answer:
            times = json.load(answer)["timings"]
        return {"prefill": times["prompt_per_second"], "decode": times["predicted_per_second"]}


class CTranslate2:
    def __init__(self, path, threads):
        import ctranslate2

        compute = path.rsplit("-", 1)[1]
        self.generator = ctranslate2.Generator(path, compute_type=compute, intra_threads=threads)

    def turn(self):
        def seconds(n):
            start = time.perf_counter()
            prompt = [[f"<{i}>" for i in IDS]]
            done = self.generator.generate_batch(
                prompt, max_length=n, min_length=n, sampling_topk=1, include_prompt_in_result=False
            )
            assert len(done[0].sequences_ids[0]) == n
            return time.perf_counter() - start

        first = seconds(1)
        return {"prefill": PROMPT / first, "decode": NEW / (seconds(1 + NEW) - first)}


def write_ctranslate2(folder, model, compute):
    """The model as CTranslate2 has it, its tokens named <id>."""
    from ctranslate2.specs import common_spec, transformer_spec

    config, params = model.config, model.params
    spec = transformer_spec.TransformerDecoderModelSpec.from_config(
        config.n_layer,
        config.n_head,
        pre_norm=True,
        activation=common_spec.Activation.GELUTanh,
    )
    decoder = spec.decoder
    decoder.scale_embeddings = False

    def norm(to, name):
        to.gamma, to.beta = params[f"{name}.weight"], params[f"{name}.bias"]

    def linear(to, name):
        to.weight, to.bias = np.ascontiguousarray(params[f"{name}.weight"].T), params[f"{name}.bias"]

    decoder.embeddings.weight = params["wte.weight"]
    decoder.position_encodings.encodings = params["wpe.weight"]
    norm(decoder.layer_norm, "ln_f")
    decoder.projection.weight = params["wte.weight"]
    for i, layer in enumerate(decoder.layer):
        norm(layer.self_attention.layer_norm, f"h.{i}.ln_1")
        linear(layer.self_attention.linear[0], f"h.{i}.attn.c_attn")
        linear(layer.self_attention.linear[1], f"h.{i}.attn.c_proj")
        norm(layer.ffn.layer_norm, f"h.{i}.ln_2")
        linear(layer.ffn.linear_0, f"h.{i}.mlp.c_fc")
        linear(layer.ffn.linear_1, f"h.{i}.mlp.c_proj")
    spec.register_vocabulary([f"<{i}>" for i in range(config.vocab_size)])
    spec.config.bos_token = spec.config.eos_token = spec.config.unk_token = f"<{config.vocab_size - 1}>"
    spec.validate()
    spec.optimize(quantization=compute)
    folder.mkdir()
    spec.save(str(folder))


def main():
    name, path, threads = sys.argv[1:]
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints is no answer
    contender = {"npgpt": Npgpt, "llama.cpp": LlamaCpp, "CTranslate2": CTranslate2}[name](path, int(threads))
    for line in sys.stdin:
        print(json.dumps(getattr(contender, line.strip())()), file=answers, flush=True)


if __name__ == "__main__":
    main()
