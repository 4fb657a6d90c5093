"""Causal language models: loading, generation and scoring against transformers, adapters."""

from pathlib import Path
from typing import Any

import pytest
import torch

from stillhouse.artifact import Artifact, Built, load_model, save_model
from stillhouse.errors import BadData, BadSetting, MissingData
from stillhouse.work import Work
from stillhouse_language.causal.adapters import AddAdapters, MergeAdapters
from stillhouse_language.causal.generation import Sampling, generate, option_log_probs
from stillhouse_language.causal.loading import LoadCausalLM
from stillhouse_language.causal.model import CausalLM, adapted_lm, causal_lm, merged
from stillhouse_language.causal.samples import built, config, model, tokenizer
from stillhouse_language.causal.tokens import ASSET, check_tokenizer, tokenizer_of, trainable

PROMPTS = ["the cat sat", "a mat", "the the cat sat on a"]


def prompts() -> list[list[int]]:
    return [tokenizer().ids(text) for text in PROMPTS]


def drawn(**changes: Any) -> list[str]:
    options: dict[str, Any] = {"max_new": 6} | changes
    rng = torch.Generator().manual_seed(0)
    return generate(model(), tokenizer(), prompts(), sampling=Sampling(**options), rng=rng)


def test_generation_in_a_batch_is_transformers_own_one_by_one() -> None:
    lm, read = model(), tokenizer()
    for found, ids in zip(drawn(), prompts(), strict=True):
        whole = lm.network.generate(
            torch.tensor([ids]), max_new_tokens=6, do_sample=False, pad_token_id=0
        )
        made = whole[0, len(ids) :].tolist()
        if read.end in made:
            made = made[: made.index(read.end)]
        assert found == read.text(made)


def test_a_shared_prefix_changes_nothing() -> None:
    lm, read = model(), tokenizer()
    before, rng = read.ids("the mat on a cat"), torch.Generator()
    given = Sampling(max_new=5)
    whole = generate(lm, read, [[*before, *p] for p in prompts()], sampling=given, rng=rng)
    reused = generate(lm, read, prompts(), sampling=given, rng=rng, prefix=before)
    assert reused == whole


def test_a_text_ends_behind_its_stop() -> None:
    free = drawn(max_new=12)[0]
    stop = free[3:5]
    assert drawn(max_new=12, stop=stop)[0] == free[: free.index(stop) + 2]


def test_drawn_texts_follow_the_generator_and_the_temperature() -> None:
    assert drawn(temperature=1.0) == drawn(temperature=1.0)
    assert drawn(temperature=1.0) != drawn(temperature=0.0)
    with pytest.raises(BadSetting, match="temperature"):
        Sampling(temperature=-1.0)


@pytest.mark.parametrize("batch", [1, 2, 64])
def test_options_score_as_transformers_loss_says(batch: int) -> None:
    lm, read = model(), tokenizer()
    before = read.ids("the cat")
    options = [[read.ids(" sat"), read.ids(" on a mat")], [read.ids("s")], [read.ids(" a a")]]
    found = option_log_probs(lm, prompts(), options, prefix=before, batch=batch)
    for log_p, context, several in zip(found, prompts(), options, strict=True):
        for value, option in zip(log_p.tolist(), several, strict=True):
            ids = torch.tensor([[*before, *context, *option]])
            labels = ids.clone()
            labels[0, : -len(option)] = -100
            loss = lm.network(input_ids=ids, labels=labels).loss
            assert value == pytest.approx(-loss.item() * len(option), abs=1e-4)


def test_text_over_the_context_is_refused_in_one_line() -> None:
    with pytest.raises(BadData, match=r"text over the context: \d+ tokens .* takes 128"):
        drawn(max_new=125)
    rows = [("the cat", " sat" * 130)]
    with pytest.raises(BadData, match=r"row 0 has 133 tokens, the model's context is 128"):
        trainable(tokenizer(), rows, context=128, where="data")


def test_trainable_rows_by_hand() -> None:
    read = tokenizer()
    found = trainable(read, [("the cat", " sat")], context=9, where="data")
    tokens, labels = found["tokens"], found["labels"]
    the, cat = read.ids("the cat")
    (sat,) = read.ids(" sat")
    assert tokens.values.tolist() == [the, cat, sat, read.end]  # pyright: ignore
    assert labels.values.tolist() == [-100, sat, read.end, -100]  # pyright: ignore


def test_packed_and_padded_tokens_give_the_same() -> None:
    lm = model()
    rows = [torch.tensor([1, 2, 3, 4]), torch.tensor([5, 6])]
    packed = lm({"tokens": torch.cat(rows), "tokens_offsets": torch.tensor([0, 4, 6])})
    alone = [lm({"tokens": row[None]})["logits"][0] for row in rows]
    torch.testing.assert_close(packed["logits"], torch.cat(alone))
    assert packed["head"].shape == (config()["vocab_size"], 32)


def folder(tmp_path: Path, **changes: Any) -> Path:
    """A model as transformers saves it."""
    found = tmp_path / "given"
    model(**changes).network.save_pretrained(found)
    tokenizer().inner.save_pretrained(found)
    return found


def loaded(path: Path, out: Path, **more: Any) -> Built:
    LoadCausalLM()({"weights": path, **more}, out, work=Work())
    return load_model(out)


@pytest.mark.parametrize("tied", [True, False])
def test_a_transformers_folder_is_loaded_with_its_tokenizer(tmp_path: Path, tied: bool) -> None:
    given = folder(tmp_path, tie_word_embeddings=tied)
    found = loaded(given, tmp_path / "out")
    tokens = torch.tensor([[1, 2, 3]])
    wanted = model(tie_word_embeddings=tied)({"tokens": tokens})["logits"]
    torch.testing.assert_close(found.module({"tokens": tokens})["logits"], wanted)
    assert tokenizer_of(found, where="x").ids("the cat") == tokenizer().ids("the cat")
    assert str(tmp_path) not in (found.assets[ASSET] / "tokenizer_config.json").read_text()


def gguf_file(path: Path) -> None:
    """A Llama of 32 x 2 layers in Q8_0, as a GGUF file with its words."""
    import gguf
    import numpy as np

    words = ["<unk>", "<s>", "</s>", *(f"w{i}" for i in range(61))]
    out = gguf.GGUFWriter(path, "llama")
    out.add_context_length(128)
    out.add_embedding_length(32)
    out.add_block_count(1)
    out.add_feed_forward_length(64)
    out.add_head_count(4)
    out.add_head_count_kv(4)
    out.add_rope_dimension_count(8)
    out.add_layer_norm_rms_eps(1e-5)
    out.add_vocab_size(len(words))
    out.add_tokenizer_model("llama")
    out.add_token_list(words)
    out.add_token_scores([0.0] * len(words))
    out.add_token_types([2, 3, 3, *[1] * 61])
    out.add_bos_token_id(1)
    out.add_eos_token_id(2)
    rng = np.random.default_rng(0)

    def put(name: str, *shape: int) -> None:
        values = rng.normal(size=shape).astype(np.float32)
        if len(shape) == 1:
            out.add_tensor(name, np.ones(shape, np.float32))
            return
        kind = gguf.GGMLQuantizationType.Q8_0
        out.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)

    put("token_embd.weight", len(words), 32)
    for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
        put(f"blk.0.{name}.weight", 32, 32)
    put("blk.0.ffn_gate.weight", 64, 32)
    put("blk.0.ffn_up.weight", 64, 32)
    put("blk.0.ffn_down.weight", 32, 64)
    for name in ("blk.0.attn_norm", "blk.0.ffn_norm", "output_norm"):
        put(f"{name}.weight", 32)
    put("output.weight", len(words), 32)
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()


def test_gguf_weights_are_dequantized(tmp_path: Path) -> None:
    """Packed weights would be integers, which nothing trains and save_pretrained refuses."""
    gguf_file(tmp_path / "model.gguf")
    found = loaded(tmp_path / "model.gguf", tmp_path / "out")
    assert isinstance(found.module, CausalLM)
    assert {p.dtype for p in found.module.parameters()} == {torch.float32}
    assert found.module.context == 128
    found.module.network.save_pretrained(tmp_path / "again")


def test_what_is_no_gguf_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"PK\x03\x04 not a model")
    with pytest.raises(BadData, match=r"model.gguf: no GGUF file \(it begins with b'PK"):
        loaded(tmp_path / "model.gguf", tmp_path / "out")
    (tmp_path / "model.gguf").write_bytes(b"GGUF\x03\x00\x00\x00 cut")
    with pytest.raises(BadData, match="no causal language model can be read") as error:
        loaded(tmp_path / "model.gguf", tmp_path / "out")
    assert "\n" not in str(error.value)


def test_what_is_not_there_or_holds_no_model(tmp_path: Path) -> None:
    with pytest.raises(MissingData, match="not found"):
        loaded(tmp_path / "nowhere", tmp_path / "out")
    with pytest.raises(BadData, match=r"no config.json and no GGUF file"):
        loaded(tmp_path, tmp_path / "out")


def test_a_tokenizer_of_another_model_is_refused(tmp_path: Path) -> None:
    given = folder(tmp_path)
    other = folder(tmp_path / "other", vocab_size=20)
    with pytest.raises(BadData, match=r"the tokenizer is another model's: it has \d+ tokens"):
        loaded(other, tmp_path / "a", tokenizer=given)
    with pytest.raises(BadData, match=r"its end token is \d+, the model's 7"):
        check_tokenizer(tokenizer(), model(eos_token_id=7).config, where="x")


def test_adapters_change_nothing_until_trained_and_merge(tmp_path: Path) -> None:
    base = built(tmp_path)
    AddAdapters(rank=2, alpha=4.0)({"base": base}, tmp_path / "adapted", work=Work.seeded(3))
    adapted = load_model(tmp_path / "adapted")
    tokens = {"tokens": torch.tensor([[1, 2, 3, 4]])}
    before = base.module(tokens)["logits"].detach()
    torch.testing.assert_close(adapted.module(tokens)["logits"], before)
    with torch.no_grad():
        for name, parameter in adapted.module.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    trained = adapted.module(tokens)["logits"].detach()
    assert float((trained - before).abs().max()) > 0.01
    MergeAdapters()({"adapted": adapted}, tmp_path / "merged", work=Work())
    merged = load_model(tmp_path / "merged")
    assert merged.spec.build is causal_lm
    torch.testing.assert_close(merged.module(tokens)["logits"], trained, atol=1e-5, rtol=1e-4)
    assert ASSET in merged.assets


def test_adapters_of_gpt2_whose_matrices_are_stored_turned_merge_too() -> None:
    given = {
        "model_type": "gpt2", "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 32,
        "vocab_size": 20, "bos_token_id": None, "eos_token_id": 0,
    }  # fmt: skip
    adapted = adapted_lm(given, 2, 4.0, ["all-linear"]).eval()
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    tokens = {"tokens": torch.tensor([[1, 2, 3]])}
    before = adapted(tokens)["logits"].detach()
    torch.testing.assert_close(merged(adapted)(tokens)["logits"], before, atol=1e-4, rtol=1e-4)


def test_adapters_are_trained_alone_and_saved_without_their_base(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    from stillhouse.data.shards import save_data
    from stillhouse.objectives.objective import Optimizer, Phase
    from stillhouse.recipe import Context
    from stillhouse.stages import Train
    from stillhouse_language.arte.objectives import Dpo
    from stillhouse_language.arte.pairing import fitting_pairs, pair_columns
    from stillhouse_language.causal.adapters import ADAPTERS

    base = save_model(tmp_path / "base" / "model", built(tmp_path))
    AddAdapters(rank=2, alpha=4.0)(
        {"base": load_model(base.path)}, tmp_path / "adapters" / "model", work=Work.seeded(3)
    )
    pairs = [("the cat", " sat", " on"), ("a mat", " sat", " on"), ("the", " sat", " on")]
    columns = pair_columns(fitting_pairs(tokenizer(), pairs, 64))
    for side in ("chosen", "rejected"):
        columns[f"{side}.reference"] = torch.tensor([-3.0, -3.0, -3.0])
    data = save_data(tmp_path / "pairs", columns)
    phase = Phase(
        trains=("teacher",),
        optimizer=Optimizer(build=torch.optim.AdamW, lr=1e-2),
        grouping=ADAPTERS,
    )
    stage = Train(
        name="align",
        objective=Dpo(phases={"align": phase}, beta=0.5),
        inputs={"data": "pairs.train", "teacher": "adapters.model", "base": "base.model"},
        bases={"teacher": "base"},
        steps=8,
        batch=3,
    )
    out = tmp_path / "align"
    out.mkdir()
    ctx = Context(stage="align", out=out, checkpoints=tmp_path / "c", caches=tmp_path / "k")
    adapters = Artifact(
        kind="model", path=tmp_path / "adapters" / "model", digest="x", opener=base.opener
    )
    found = stage.run({"data": data, "teacher": adapters, "base": base}, ctx)
    made = found.outputs["teacher"]
    assert {"lora_" in name for name in load_file(made.path / "model.safetensors")} == {True}
    assert found.curves[-1]["dpo"] < found.curves[0]["dpo"]


def test_an_exported_student_opens_in_transformers_alone(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from stillhouse_language.causal.export import add_transformers_files

    given = built(tmp_path)
    save_model(tmp_path / "out", given)
    add_transformers_files(given, tmp_path / "out")
    found = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    tokens = torch.tensor([[1, 2, 3]])
    ours = given.module({"tokens": tokens})["logits"]
    torch.testing.assert_close(found(input_ids=tokens).logits, ours)
    read = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert read("the cat", add_special_tokens=False)["input_ids"] == tokenizer().ids("the cat")
