// dots.glsl - products of the tier intdot, after weights.glsl and rows.glsl (-DLAYOUT of a quantised layout). Arithmetic: README.md here.
//
// Weights and activations meet as words of four signed bytes, in the order of quantise.glsl: in pairs where a weight's word holds eight
// nibbles, else element by element.
#extension GL_EXT_spirv_intrinsics : require
// OpSDot of four signed bytes each (SPV_KHR_integer_dot_product, PackedVectorFormat4x8Bit): the sum is exact.
spirv_instruction(extensions = ["SPV_KHR_integer_dot_product"], capabilities = [6018, 6019], id = 4450)
int packed_dot(uint a, uint b, spirv_literal int format);

#if LAYOUT == SH_LAYOUT_Q2_K || LAYOUT == SH_LAYOUT_Q6_K || LAYOUT == SH_LAYOUT_TABLE256 || LAYOUT == SH_LAYOUT_TABLE8
#define TWO_SCALES // of the first and the last 16
#endif

// The values of two neighbouring codes as two bytes, for each pair of codes. All threads call load_pairs and meet a barrier before octet_words.
#ifdef HAS_TABLE
#if LAYOUT == SH_LAYOUT_TABLE8
#define PAIRS 64u // 2-bit codes, then their third bits
#else
#define PAIRS 256u
#endif
shared uint pairs[PAIRS];
void load_pairs(uint thread, uint threads) {
    for (uint i = thread; i < PAIRS; i += threads) {
#if LAYOUT == SH_LAYOUT_TABLE8
        const uint a = (i & 3u) | ((i >> 4) & 1u) << 2, b = ((i >> 2) & 3u) | ((i >> 5) & 1u) << 2;
#else
        const uint a = i & 15u, b = i >> 4;
#endif
        pairs[i] = ((p.constant[a >> 2] >> (8u * (a & 3u))) & 0xffu) | ((p.constant[b >> 2] >> (8u * (b & 3u))) & 0xffu) << 8;
    }
}
#endif

// The two words of octet j of a unit.
uvec2 octet_words(sh_p_weight w, Unit t, uint j) {
#if LAYOUT == SH_LAYOUT_Q8_0
    const uvec4 four = U128(w.quants).v[t.index + (j >> 1) * t.step];
    return (j & 1u) != 0u ? four.zw : four.xy;
#elif LAYOUT == SH_LAYOUT_Q2_K
    const uint q = t.q[j >> 1] >> (16u * (j & 1u));
    uvec2 two = uvec2(q & 0xffu, (q >> 8) & 0xffu);
    two = (two | (two << 12)) & 0x000f000fu;
    return (two | (two << 6)) & 0x03030303u;
#elif LAYOUT == SH_LAYOUT_TABLE8
    const uint q = t.q[j >> 1] >> (16u * (j & 1u)), high = t.high >> (8u * j);
    return uvec2(pairs[(q & 15u) | (high & 3u) << 4] | pairs[((q >> 4) & 15u) | ((high >> 2) & 3u) << 4] << 16,
                 pairs[((q >> 8) & 15u) | ((high >> 4) & 3u) << 4] | pairs[((q >> 12) & 15u) | ((high >> 6) & 3u) << 4] << 16);
#elif LAYOUT == SH_LAYOUT_TABLE32 || LAYOUT == SH_LAYOUT_TABLE256
    const uint q = t.q[j];
    return uvec2(pairs[q & 0xffu] | pairs[(q >> 8) & 0xffu] << 16, pairs[(q >> 16) & 0xffu] | pairs[q >> 24] << 16);
#else
    uvec2 two = uvec2(t.q[j] & 0x0f0f0f0fu, (t.q[j] >> 4) & 0x0f0f0f0fu);
#if LAYOUT == SH_LAYOUT_Q5_K || LAYOUT == SH_LAYOUT_Q5_1
    // Bit 2k of the factor comes to 8k + 4; what else the product has lies at other places, its carries at odd ones.
    const uint high = t.high >> (8u * j);
    two |= (uvec2(high & 0x55u, (high >> 1) & 0x55u) * 0x00410410u) & 0x10101010u;
#elif LAYOUT == SH_LAYOUT_Q6_K
    const uint high = t.high[j >> 1] >> (16u * (j & 1u));
    uvec2 upper = uvec2(high & 0x3333u, (high >> 2) & 0x3333u); // fields of two bits, four bits apart
    upper = (upper | (upper << 8)) & 0x00ff00ffu;
    two |= ((upper | (upper << 4)) & 0x03030303u) << 4;
#endif
    return two;
#endif
}

// What a unit of one output and one row adds to a lane's sum. dots: of the first and of the last 16, or both in x; sums: of the quants.
float add_unit(float sum, float a, float b, vec2 m, ivec2 dots, float dx, ivec2 sums) {
#ifdef TWO_SCALES
#if LAYOUT == SH_LAYOUT_Q6_K
    dots -= 32 * sums;
#endif
    precise vec2 parts = dx * vec2(dots);
    precise float y = fma(a, parts.x, sum);
    y = fma(b, parts.y, y);
#if LAYOUT == SH_LAYOUT_Q2_K
    precise vec2 below = dx * vec2(sums);
    y = fma(-m.x, below.x, y);
    y = fma(-m.y, below.y, y);
#endif
#else
    int whole = dots.x;
#if LAYOUT == SH_LAYOUT_Q4_0
    whole -= 8 * (sums.x + sums.y);
#elif LAYOUT == SH_LAYOUT_Q5_1
    whole -= int(p.constant[0]) * (sums.x + sums.y);
#endif
    precise float part = dx * float(whole);
    precise float y = fma(a, part, sum);
#if LAYOUT == SH_LAYOUT_Q4_1 || LAYOUT == SH_LAYOUT_Q5_1 || LAYOUT == SH_LAYOUT_Q4_K || LAYOUT == SH_LAYOUT_Q5_K
    precise float below = dx * float(sums.x + sums.y);
#if LAYOUT == SH_LAYOUT_Q4_1 || LAYOUT == SH_LAYOUT_Q5_1
    y = fma(b, below, y);
#else
    y = fma(-b, below, y);
#endif
#endif
#endif
    return y;
}

// The scales of a unit as add_unit takes them.
float scale_b(Unit t) {
#if LAYOUT == SH_LAYOUT_Q4_0 || LAYOUT == SH_LAYOUT_Q8_0 || LAYOUT == SH_LAYOUT_TABLE32
    return 0.0;
#else
    return t.b;
#endif
}
vec2 scale_m(Unit t) {
#if LAYOUT == SH_LAYOUT_Q2_K
    return t.m;
#else
    return vec2(0.0);
#endif
}
ivec2 halves(uint sums) { return ivec2(bitfieldExtract(int(sums), 0, 16), int(sums) >> 16); }
