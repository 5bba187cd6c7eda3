// weights.glsl - the weight layouts (-DLAYOUT=SH_LAYOUT_*), as compute/vulkan/layouts.c writes them. Push constants: p.constant.
//
// A row has `units` = ceil(K / 32) units of 32 elements; a part holds whole rows, plane by plane, every plane 16-byte aligned:
//   quants  16-byte chunks, C per unit (F32 8, F16/BF16 4, Q8_0 2, the others 1). Chunks of 32 neighbouring units are interleaved
//   so that
//           neighbouring lanes read neighbouring chunks: chunk c of unit u of row n is at
//           n * units * C + (u & ~31) * C + c * min(32, units - (u & ~31)) + (u & 31)
//           4-bit quants and codes: element e of the unit is nibble e, ascending from bit 0 of the first word. Q2_K, TABLE8: 8 bytes
//           per unit, element e is bits 2e and 2e + 1.
//   scales  Q4_0, Q8_0: one f16 per unit. Q4_1, Q5_1: d | m << 16 per unit, both f16. Q4_K, Q5_K: 16 bytes per 8 units: d | dmin << 16,
//           then for unit s the low four bits of scale and
//           min as byte s of two words (scale below), then their upper two bits as nibble s of one word. Q6_K, TABLE256, TABLE8: 16
//           signed bytes per 8 units, two for each unit. Q2_K: the same, of scale | min << 4. TABLE32: one float per unit.
//   extra   Q5_1, Q5_K: the fifth bits, one word per unit. Q6_K: the upper two bits, two words per unit. TABLE8: the third bits, one word.
//   deltas  Q6_K: d, one f16 per 8 units. Q2_K: d | dmin << 16. TABLE256, TABLE8: d, one float per 8 units.
// Elements: Q5_1 d (q - constant[0]) + m, which is also Q5_0 with constant[0] = 16 and m = 0; tables d (scale) value[code], value c the
// signed byte c of `constant`. Rows whose K is no multiple of 32 (F32, F16, BF16) are padded with zeros.

#if LAYOUT == SH_LAYOUT_F32
#define CHUNKS 8
#elif LAYOUT == SH_LAYOUT_F16 || LAYOUT == SH_LAYOUT_BF16
#define CHUNKS 4
#elif LAYOUT == SH_LAYOUT_Q8_0
#define CHUNKS 2
#else
#define CHUNKS 1
#endif

float half_of(U32 plane, uint index) {
    uint word = plane.v[index >> 1];
    return unpackHalf2x16((index & 1u) != 0u ? word >> 16 : word).x;
}

// One unit of one row: loaded whole where it is small, by the octet where it is not.
struct Unit {
#if CHUNKS == 1
#if LAYOUT == SH_LAYOUT_Q2_K || LAYOUT == SH_LAYOUT_TABLE8
    uvec2 q;
#if LAYOUT == SH_LAYOUT_Q2_K
    vec2 m; // the minima of the first and the last 16
#endif
#else
    uvec4 q;
#endif
    float a; // the scale; Q2_K, Q6_K, TABLE256, TABLE8: of the first 16
#if LAYOUT != SH_LAYOUT_Q4_0 && LAYOUT != SH_LAYOUT_TABLE32
    float b; // Q4_1, Q5_1: what is added; Q4_K, Q5_K: what is subtracted; else the scale of the last 16
#endif
#if LAYOUT == SH_LAYOUT_Q5_K || LAYOUT == SH_LAYOUT_Q5_1 || LAYOUT == SH_LAYOUT_TABLE8
    uint high;
#elif LAYOUT == SH_LAYOUT_Q6_K
    uvec2 high;
#endif
#else
    uint index, step; // of chunk 0, and to the next chunk
#if LAYOUT == SH_LAYOUT_Q8_0
    float a;
#endif
#endif
};

// The table's values. Before the first octet() all threads call load_table and meet a barrier.
#if LAYOUT == SH_LAYOUT_TABLE32 || LAYOUT == SH_LAYOUT_TABLE256 || LAYOUT == SH_LAYOUT_TABLE8
#define HAS_TABLE
shared float table[16];
void load_table(uint thread) {
    if (thread < 16u) table[thread] = float(bitfieldExtract(int(p.constant[thread >> 2]), int(8u * (thread & 3u)), 8));
}
#endif

Unit load_unit(sh_p_weight w, uint row, uint u, uint units) {
    Unit t;
#if LAYOUT == SH_LAYOUT_Q2_K || LAYOUT == SH_LAYOUT_TABLE8
    t.q = U64(w.quants).v[row * units + u];
#elif CHUNKS == 1
    t.q = U128(w.quants).v[row * units + u];
#else
    uint group = u & ~31u;
    t.step = min(32u, units - group);
    t.index = (row * units + group) * CHUNKS + (u & 31u);
#endif
#if LAYOUT == SH_LAYOUT_Q4_0
    t.a = half_of(U32(w.scales), row * units + u);
#elif LAYOUT == SH_LAYOUT_Q8_0
    t.a = half_of(U32(w.scales), row * units + u);
#elif LAYOUT == SH_LAYOUT_Q4_1 || LAYOUT == SH_LAYOUT_Q5_1
    vec2 d = unpackHalf2x16(U32(w.scales).v[row * units + u]);
    t.a = d.x;
    t.b = d.y;
#if LAYOUT == SH_LAYOUT_Q5_1
    t.high = U32(w.extra).v[row * units + u];
#endif
#elif LAYOUT == SH_LAYOUT_TABLE32
    t.a = F32(w.scales).v[row * units + u];
#elif LAYOUT == SH_LAYOUT_TABLE256 || LAYOUT == SH_LAYOUT_TABLE8
    uint i = row * units + u;
    float d = F32(w.deltas).v[i >> 3];
    uint pair = U32(w.scales).v[i >> 1] >> (16u * (i & 1u));
    t.a = d * float(bitfieldExtract(int(pair), 0, 8));
    t.b = d * float(bitfieldExtract(int(pair), 8, 8));
#if LAYOUT == SH_LAYOUT_TABLE8
    t.high = U32(w.extra).v[i];
#endif
#elif LAYOUT == SH_LAYOUT_Q2_K
    uint i = row * units + u;
    vec2 d = unpackHalf2x16(U32(w.deltas).v[i >> 3]);
    uint pair = U32(w.scales).v[i >> 1] >> (16u * (i & 1u));
    t.a = d.x * float(pair & 15u);
    t.b = d.x * float((pair >> 8) & 15u);
    t.m = vec2(d.y * float((pair >> 4) & 15u), d.y * float((pair >> 12) & 15u));
#elif LAYOUT == SH_LAYOUT_Q4_K || LAYOUT == SH_LAYOUT_Q5_K
    uvec4 head = U128(w.scales).v[(row * units + u) >> 3];
    uint s = u & 7u;
    uint low = (s < 4u ? head.y : head.z) >> (8u * (s & 3u));
    uint up = head.w >> (4u * s);
    vec2 d = unpackHalf2x16(head.x);
    t.a = d.x * float((low & 15u) | ((up & 3u) << 4));
    t.b = d.y * float(((low >> 4) & 15u) | ((up & 12u) << 2));
#if LAYOUT == SH_LAYOUT_Q5_K
    t.high = U32(w.extra).v[row * units + u];
#endif
#elif LAYOUT == SH_LAYOUT_Q6_K
    uint i = row * units + u;
    float d = half_of(U32(w.deltas), i >> 3);
    uint pair = U32(w.scales).v[i >> 1] >> (16u * (i & 1u));
    t.a = d * float(bitfieldExtract(int(pair), 0, 8));
    t.b = d * float(bitfieldExtract(int(pair), 8, 8));
    t.high = uvec2(U32(w.extra).v[2u * i], U32(w.extra).v[2u * i + 1u]);
#endif
    return t;
}

// The bits of q under the mask as a float, less `bias`: the quant at that place times the place's power of two. Without a conversion:
// the bits become the mantissa of 2^23, so the mask may reach up to bit 22.
float in_place(uint q, uint mask, float bias) {
    precise float value = uintBitsToFloat((q & mask) | 0x4b000000u) - (8388608.0 + bias);
    return value;
}
// The nibble i of q, less `bias`, times 16^i, or where that is too far up, i >= 5, of q shifted right by 20, times 16^(i - 5).
#define PLACE(i) ((i) < 5u ? (i) : (i) - 5u)
float nibble(uint q, uint i, float bias) {
    return in_place(i < 5u ? q : q >> 20, 15u << (4u * PLACE(i)), bias * float(1u << (4u * PLACE(i))));
}
// 16^-i: what the scale is multiplied by. All products stay exact.
float sixteenth(uint i) { return 1.0 / float(1u << (4u * PLACE(i))); }

// Elements 8j .. 8j + 7 of the unit (j < 4).
void octet(sh_p_weight w, Unit t, uint j, out float e[8]) {
#if LAYOUT == SH_LAYOUT_F32
    uvec4 p = U128(w.quants).v[t.index + 2u * j * t.step];
    uvec4 q = U128(w.quants).v[t.index + (2u * j + 1u) * t.step];
    [[unroll]] for (uint i = 0u; i < 4u; i++) {
        e[i] = uintBitsToFloat(p[i]);
        e[4u + i] = uintBitsToFloat(q[i]);
    }
#elif LAYOUT == SH_LAYOUT_F16
    uvec4 q = U128(w.quants).v[t.index + j * t.step];
    [[unroll]] for (uint i = 0u; i < 4u; i++) {
        vec2 two = unpackHalf2x16(q[i]);
        e[2u * i] = two.x;
        e[2u * i + 1u] = two.y;
    }
#elif LAYOUT == SH_LAYOUT_BF16
    uvec4 q = U128(w.quants).v[t.index + j * t.step];
    [[unroll]] for (uint i = 0u; i < 4u; i++) {
        e[2u * i] = uintBitsToFloat(q[i] << 16);
        e[2u * i + 1u] = uintBitsToFloat(q[i] & 0xffff0000u);
    }
#elif LAYOUT == SH_LAYOUT_Q8_0
    uvec4 four = U128(w.quants).v[t.index + (j >> 1) * t.step];
    uvec2 two = ((j & 1u) != 0u ? four.zw : four.xy) ^ 0x80808080u; // from -128 up
    [[unroll]] for (uint i = 0u; i < 8u; i++) {
        const uint q = two[i >> 2] >> (16u * ((i >> 1) & 1u)), place = 8u * (i & 1u);
        precise float value = t.a * (1.0 / float(1u << place)) * in_place(q, 255u << place, 128.0 * float(1u << place));
        e[i] = value;
    }
#elif LAYOUT == SH_LAYOUT_Q2_K
    uint q = t.q[j >> 1] >> (16u * (j & 1u));
    float a = j < 2u ? t.a : t.b, m = j < 2u ? t.m.x : t.m.y;
    [[unroll]] for (uint i = 0u; i < 8u; i++) {
        precise float value = a * float((q >> (2u * i)) & 3u) - m;
        e[i] = value;
    }
#elif LAYOUT == SH_LAYOUT_TABLE8
    uint q = t.q[j >> 1] >> (16u * (j & 1u)), high = t.high >> (8u * j);
    float a = j < 2u ? t.a : t.b;
    [[unroll]] for (uint i = 0u; i < 8u; i++) {
        precise float value = a * table[((q >> (2u * i)) & 3u) | (((high >> i) & 1u) << 2)];
        e[i] = value;
    }
#else
    uint q = t.q[j];
#if LAYOUT == SH_LAYOUT_Q5_K || LAYOUT == SH_LAYOUT_Q5_1
    uint high = t.high >> (8u * j);
#elif LAYOUT == SH_LAYOUT_Q6_K
    uint high = t.high[j >> 1] >> (16u * (j & 1u));
#endif
#if LAYOUT == SH_LAYOUT_Q6_K || LAYOUT == SH_LAYOUT_TABLE256
    float a = j < 2u ? t.a : t.b;
#endif
    [[unroll]] for (uint i = 0u; i < 8u; i++) {
#if LAYOUT == SH_LAYOUT_Q4_0
        precise float value = t.a * sixteenth(i) * nibble(q, i, 8.0);
#elif LAYOUT == SH_LAYOUT_Q4_1
        precise float value = t.a * sixteenth(i) * nibble(q, i, 0.0) + t.b;
#elif LAYOUT == SH_LAYOUT_Q4_K
        precise float value = t.a * sixteenth(i) * nibble(q, i, 0.0) - t.b;
#elif LAYOUT == SH_LAYOUT_Q6_K
        const uint v = ((q >> (4u * i)) & 15u) | (((high >> (2u * i)) & 3u) << 4);
        precise float value = a * in_place(v, 63u, 32.0);
#else
        uint v = (q >> (4u * i)) & 15u;
#if LAYOUT == SH_LAYOUT_Q5_K || LAYOUT == SH_LAYOUT_Q5_1
        v |= ((high >> i) & 1u) << 4;
#endif
#if LAYOUT == SH_LAYOUT_Q5_1
        precise float value = t.a * float(int(v) - int(p.constant[0])) + t.b;
#elif LAYOUT == SH_LAYOUT_TABLE32
        precise float value = t.a * table[v];
#elif LAYOUT == SH_LAYOUT_TABLE256
        precise float value = a * table[v];
#else
        precise float value = t.a * float(v) - t.b;
#endif
#endif
        e[i] = value;
    }
#endif
}
