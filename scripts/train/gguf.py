"""gguf - writes a trained model as a GGUF file, version 3: metadata, then tensors at multiples of 32 bytes. Matrices as Q8_0 or F16, the rest F32."""
import struct

import numpy

U32, F32, BOOL, STRING, ARRAY = 4, 6, 7, 8, 9
TYPES = {"F32": 0, "F16": 1, "Q8_0": 8}
ALIGNMENT = 32


def string(text):
    raw = text.encode("utf-8")
    return struct.pack("<Q", len(raw)) + raw


def value(kind, v):
    if kind == STRING:
        return string(v)
    return struct.pack({U32: "<I", F32: "<f", BOOL: "<?", 5: "<i"}[kind], v)


def entry(key, kind, v, of=None):
    head = string(key) + struct.pack("<I", kind)
    if kind == ARRAY:
        return head + struct.pack("<IQ", of, len(v)) + b"".join(value(of, x) for x in v)
    return head + value(kind, v)


def q8_0(x):
    """Blocks of 32 along a row: scale d = largest magnitude / 127 as f16, then 32 int8 of x / d, halves away from zero."""
    x = numpy.ascontiguousarray(x, dtype=numpy.float32).reshape(-1, 32)
    d = numpy.abs(x).max(axis=1) / 127
    scaled = x * numpy.where(d > 0, 1 / numpy.where(d > 0, d, 1), 0)[:, None]
    q = numpy.trunc(scaled + numpy.copysign(0.5, scaled)).astype(numpy.int8)
    out = numpy.empty(len(x), dtype=[("d", "<f2"), ("q", "i1", 32)])
    out["d"], out["q"] = d, q
    return out.tobytes()


def encode(x, kind):
    if kind == "Q8_0":
        return q8_0(x)
    return numpy.ascontiguousarray(x, dtype="<f2" if kind == "F16" else "<f4").tobytes()


def tensors(model):
    """(name, array [rows][cols]) in the file's order, by the names of the llama architecture."""
    array = lambda p: p.detach().float().numpy()
    s = model.shape
    kv = s.kv_heads * s.head_dim
    yield "token_embd.weight", array(model.embd.weight)
    for i, layer in enumerate(model.layers):
        q, k, v = numpy.split(array(layer.qkv.weight), [s.embd, s.embd + kv])
        gate, up = numpy.split(array(layer.gate_up.weight), 2)
        for name, x in (("attn_norm", array(layer.attn_norm.weight)), ("attn_q", q), ("attn_k", k), ("attn_v", v), ("attn_output", array(layer.out.weight)),
                        ("ffn_norm", array(layer.ffn_norm.weight)), ("ffn_gate", gate), ("ffn_up", up), ("ffn_down", array(layer.down.weight))):
            yield f"blk.{i}.{name}.weight", x
    yield "output_norm.weight", array(model.norm.weight)


def write(path, model, tokens, merges, special, about, template, matrices="Q8_0"):
    """about: (name, description, licence). The first special token begins and ends texts, the last ends an answer."""
    s = model.shape
    first = len(tokens) - len(special)
    kinds = [1] * first + [3] * len(special)
    meta = [entry("general.architecture", STRING, "llama"), entry("general.name", STRING, about[0]), entry("general.description", STRING, about[1]), entry("general.license", STRING, about[2]),
            entry("general.file_type", U32, 7 if matrices == "Q8_0" else 1), entry("general.quantization_version", U32, 2), entry("llama.vocab_size", U32, s.vocab),
            entry("llama.context_length", U32, s.context), entry("llama.embedding_length", U32, s.embd), entry("llama.block_count", U32, s.layers), entry("llama.feed_forward_length", U32, s.ff),
            entry("llama.attention.head_count", U32, s.heads), entry("llama.attention.head_count_kv", U32, s.kv_heads), entry("llama.attention.layer_norm_rms_epsilon", F32, s.eps),
            entry("llama.rope.dimension_count", U32, s.head_dim), entry("llama.rope.freq_base", F32, s.rope_base), entry("tokenizer.ggml.model", STRING, "gpt2"), entry("tokenizer.ggml.pre", STRING, "gpt-2"),
            entry("tokenizer.ggml.tokens", ARRAY, tokens, STRING), entry("tokenizer.ggml.token_type", ARRAY, kinds, 5), entry("tokenizer.ggml.merges", ARRAY, [" ".join(m) for m in merges], STRING),
            entry("tokenizer.ggml.bos_token_id", U32, first), entry("tokenizer.ggml.eos_token_id", U32, first), entry("tokenizer.ggml.eot_token_id", U32, len(tokens) - 1),
            entry("tokenizer.ggml.add_bos_token", BOOL, True), entry("tokenizer.chat_template", STRING, template)]
    infos, data, at = [], [], 0
    for name, x in tensors(model):
        kind = matrices if x.ndim == 2 else "F32"
        raw = encode(x, kind)
        raw += b"\0" * (-len(raw) % ALIGNMENT)
        infos.append(string(name) + struct.pack("<I", x.ndim) + b"".join(struct.pack("<Q", n) for n in reversed(x.shape)) + struct.pack("<IQ", TYPES[kind], at))
        data.append(raw)
        at += len(raw)
    head = b"GGUF" + struct.pack("<IQQ", 3, len(infos), len(meta)) + b"".join(meta) + b"".join(infos)
    with open(path, "wb") as f:
        f.write(head + b"\0" * (-len(head) % ALIGNMENT) + b"".join(data))
