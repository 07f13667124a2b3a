"""`python -m npgpt.train TEXT...`: train a GPT on text, from reading the files to showing what it writes."""

import json
import os
import shlex

from npgpt import cli
from npgpt.cli import Setting

SETTINGS = [
    Setting("out", str, "the run's folder, which must not exist yet (default: runs/ and the text's name)"),
    Setting("epochs", cli.count, "train for so many epochs; in one, each training token is a target once"),
    Setting("steps", cli.count, "train for so many steps"),
    Setting("batch_size", cli.count, "windows in a step"),
    Setting("block_size", cli.count, "tokens in a window: the model's context"),
    Setting("n_layer", cli.count, "layers"),
    Setting("n_head", cli.count, "attention heads, which must divide n_embd"),
    Setting("n_embd", cli.count, "channels"),
    Setting("dropout", cli.share, "share of activations dropped while training"),
    Setting("tokenizer", cli.one_of("bytes"), "bytes: a token is a byte, 257 in all (default)"),
    Setting("split", str, "shares of training, validation, test (default 0.8,0.1,0.1; a small text: 1)"),
    Setting(
        "clean", cli.one_of("none", "light", "full"), "none, light (BOM, line ends, NFC; default) or full"
    ),
    Setting(
        "optimizer",
        cli.one_of("adamw", "muon"),
        "muon (default: Muon for the layers' matrices, AdamW for the rest) or adamw",
    ),
    Setting("lr", cli.positive, "highest learning rate (default: 0.02 for muon, 0.004 for adamw)"),
    Setting("min_lr", cli.not_negative, "learning rate at the end (default: lr / 50)"),
    Setting("warmup", cli.count_or_zero, "steps until the learning rate is at its highest"),
    Setting("weight_decay", cli.not_negative, "of weights, not of biases and gains (default 0.1)"),
    Setting("clip", cli.positive, "greatest norm of the gradient (default 1)"),
    Setting("eval_every", cli.count, "steps between validations (default: a tenth of all)"),
    Setting(
        "eval_tokens", cli.count, "validation tokens used while training (default 65536; at the end all)"
    ),
    Setting("save_every", cli.count, "steps between checkpoints (default: eval_every)"),
    Setting("keep", cli.count, "checkpoints to keep, beside the best (default 2)"),
    Setting("target_loss", cli.positive, "stop at this validation loss (without validation: training loss)"),
    Setting("seed", cli.count_or_zero, "of weights, batches and dropout (default 0)"),
    Setting("threads", cli.count, "default: the CPUs this process may use"),
]
DEFAULTS = {"tokenizer": "bytes", "clean": "light", "keep": 2, "seed": 0}  # the rest is the plan's


def main(argv=None) -> int:
    parser = cli.parser("train", "Train a GPT on text. What is not given depends on the text's size alone.")
    add = parser.add_argument
    add("text", nargs="+", metavar="TEXT", help="text files; any bytes will do")
    cli.add_settings(parser, SETTINGS)
    add("--config", metavar="FILE", help="take settings from a TOML file, such as a run's config.toml")
    add("--json", action="store_true", help="end with one JSON object on the last line of stdout")
    args = parser.parse_args(argv)

    with cli.errors_as_lines("train"):  # whatever can be refused is, before anything is written
        from npgpt.api import GPT, GPTConfig
        from npgpt.engine import kernels
        from npgpt.text import data
        from npgpt.training import run as runs
        from npgpt.training.plan import FLAGS, make_plan
        from npgpt.training.trainer import Trainer, TrainingFailed

        settings = cli.resolve(SETTINGS, args, args.config)
        if args.epochs and args.steps:
            raise ValueError("--epochs and --steps cannot both be given")
        if args.epochs or args.steps:  # a length given here replaces one of either kind from elsewhere
            settings |= {"epochs": args.epochs, "steps": args.steps}
        settings |= {name: value for name, value in DEFAULTS.items() if settings[name] is None}
        raw = data.read_files(args.text)
        documents = [data.clean_document(document, settings["clean"]) for document in raw]
        plan = make_plan(data.n_tokens(documents), **{name: settings[name] for name in FLAGS})
        dataset = data.Dataset.from_documents(documents, plan.split)
        config = GPTConfig(vocab_size=dataset.tokenizer.vocab_size, **plan.model_sizes())
        resident = runs.resident_bytes()
        trainer = Trainer(GPT(config, settings["seed"]), dataset, plan, settings["seed"])
        folder = runs.make_folder(settings["out"], args.text[0])

    cli.begin(settings["threads"])
    _tell_text(raw, documents, settings["clean"], dataset, plan)
    wanted = settings["target_loss"]
    settings |= {"text": [os.path.abspath(path) for path in args.text], **plan.settings()}
    settings |= {"out": None, "epochs": None, "target_loss": wanted}  # a run from these settings has its own
    failures = (OSError, MemoryError, TrainingFailed)
    with cli.errors_as_lines("train", 1, failures), cli.interruptible() as interrupted:
        runs.write_config(folder, settings, {"memorise": plan.memorise, "text_sha256": data.fingerprint(raw)})
        _tell_cost(trainer, resident)
        result = trainer.train(folder, settings["keep"], should_stop=interrupted)
        del trainer  # its memory is needed to read the model back
        kernels.release_memory()
        _tell_result(result, plan)
        _show_sample(folder, documents[0], plan, settings["seed"])
    if args.json:
        print(json.dumps(result))
    if result["ended"] == "interrupted":
        return 130
    return 1 if wanted and result["ended"] == "done" else 0


def _tell_text(raw, documents, clean, dataset, plan):
    files = f"{len(raw)} files" if len(raw) > 1 else "1 file"
    size, cleaned = sum(map(len, raw)), sum(map(len, documents))
    effect = "changed nothing" if raw == documents else f"left {cleaned:,} bytes"
    print(f"text: {size:,} bytes in {files}; cleaning ({clean}) {effect}")
    if plan.memorise:
        print("this text is too small to generalise from: it will be memorised, all of it is for training")
    else:
        parts = (dataset.train, dataset.validation, dataset.test)
        print("tokens: {:,} for training, {:,} for validation, {:,} for testing".format(*map(len, parts)))


def _tell_cost(trainer, resident: int):
    """What the run will take, before it takes it; `resident` is what the process held before the model."""
    plan, model = trainer.plan, trainer.model
    shape = f"{plan.n_layer} layers, {plan.n_head} heads, {plan.n_embd} channels, context {plan.block_size}"
    print(f"model: {shape}: {model.num_params:,} parameters")
    epochs = plan.steps / trainer.batches.per_epoch
    megabytes = (resident + trainer.memory_needed()) / 1e6
    steps = f"{plan.steps} steps of {plan.batch_size} x {plan.block_size} tokens"
    print(f"training: {steps}, {epochs:.1f} epochs")
    at_most = "at most" if plan.target_loss else "about"
    print(f"expected: {megabytes:.0f} MB of memory, {at_most} {trainer.seconds_needed():.0f} s", flush=True)


def _tell_result(result, plan):
    losses = f"training loss {result['train_loss']:.4f}"
    if result["val_loss"] is not None:
        losses += f", validation loss {result['val_loss']:.4f} nats per token"
    print(f"{result['ended']} after {result['steps']} steps, {result['seconds']:.1f} s: {losses}")
    if plan.memorise and result["ended"] == "done":
        print(f"not memorised yet: the training loss should be {plan.target_loss}; more --steps will do it")
    print(f"saved to {result['run']}")


def _show_sample(folder, document: bytes, plan, seed: int):
    """What the saved model writes: a memorised text from its beginning, else something of its own."""
    import npgpt

    model = npgpt.load(folder)
    temperature, length = (0, len(document)) if plan.memorise else (0.8, 400)
    text = model.generate("", max_new_tokens=min(length, 1000), temperature=temperature, seed=seed)
    rule = "-" * 70
    print(f"it writes:\n{rule}\n{text.rstrip()}\n{rule}")
    prompt = " ".join(document[:200].decode("utf-8", "ignore").split()[:2])
    print(f"next: python -m npgpt.generate {shlex.quote(str(folder))} {shlex.quote(prompt)}")
    print(f"      python -m npgpt.evaluate {shlex.quote(str(folder))}")


if __name__ == "__main__":
    raise SystemExit(main())
