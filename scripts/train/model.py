"""model - a llama: RMS norms, rotary positions (adjacent pairs), grouped-query attention, SwiGLU, the embedding as output. Float32."""
import math
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F


@dataclass
class Shape:
    vocab: int = 2048
    layers: int = 5
    embd: int = 256
    heads: int = 4
    kv_heads: int = 2
    ff: int = 768
    context: int = 1024
    eps: float = 1e-5
    rope_base: float = 10000.0

    @property
    def head_dim(self):
        return self.embd // self.heads


def rotation(shape, length):
    """cos, sin [length][head_dim / 2]"""
    frequency = shape.rope_base ** (-torch.arange(0, shape.head_dim, 2).float() / shape.head_dim)
    angle = torch.arange(length).float()[:, None] * frequency[None, :]
    return angle.cos(), angle.sin()


def rotate(x, cos, sin):
    """x [batch][heads][length][head_dim], pairs (2i, 2i + 1)"""
    even, odd = x[..., 0::2], x[..., 1::2]
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1).flatten(-2)


class Norm(nn.Module):
    def __init__(self, width, eps):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(width)), eps

    def forward(self, x):
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps) * self.weight


class Layer(nn.Module):
    def __init__(self, s):
        super().__init__()
        self.s = s
        kv = s.kv_heads * s.head_dim
        self.attn_norm, self.ffn_norm = Norm(s.embd, s.eps), Norm(s.embd, s.eps)
        self.qkv = nn.Linear(s.embd, s.embd + 2 * kv, bias=False)
        self.out = nn.Linear(s.embd, s.embd, bias=False)
        self.gate_up = nn.Linear(s.embd, 2 * s.ff, bias=False)
        self.down = nn.Linear(s.ff, s.embd, bias=False)

    def forward(self, x, cos, sin, mask):
        s, (b, t, _) = self.s, x.shape
        kv = s.kv_heads * s.head_dim
        q, k, v = self.qkv(self.attn_norm(x)).split((s.embd, kv, kv), dim=-1)
        q = rotate(q.view(b, t, s.heads, s.head_dim).transpose(1, 2), cos, sin)
        k = rotate(k.view(b, t, s.kv_heads, s.head_dim).transpose(1, 2), cos, sin)
        v = v.view(b, t, s.kv_heads, s.head_dim).transpose(1, 2)
        per = s.heads // s.kv_heads  # query head h reads key head h // per
        k, v = k.repeat_interleave(per, dim=1), v.repeat_interleave(per, dim=1)
        scores = q @ k.transpose(-1, -2) / math.sqrt(s.head_dim) + mask
        x = x + self.out((scores.softmax(-1) @ v).transpose(1, 2).reshape(b, t, s.embd))
        gate, up = self.gate_up(self.ffn_norm(x)).chunk(2, dim=-1)
        return x + self.down(F.silu(gate) * up)


class Llama(nn.Module):
    def __init__(self, shape):
        super().__init__()
        self.shape = shape
        self.embd = nn.Embedding(shape.vocab, shape.embd)
        self.layers = nn.ModuleList(Layer(shape) for _ in range(shape.layers))
        self.norm = Norm(shape.embd, shape.eps)
        for name, p in self.named_parameters():
            if p.dim() == 2:
                scale = 0.02 / math.sqrt(2 * shape.layers) if name.endswith(("out.weight", "down.weight")) else 0.02
                nn.init.normal_(p, 0.0, scale)

    def forward(self, tokens):
        t = tokens.shape[1]
        cos, sin = rotation(self.shape, t)
        mask = torch.full((t, t), float("-inf")).triu(1)
        x = self.embd(tokens)
        for layer in self.layers:
            x = layer(x, cos, sin, mask)
        return F.linear(self.norm(x), self.embd.weight)
