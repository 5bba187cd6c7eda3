// select.glsl - which of many items are the best `want`, exactly: a radix search from the highest digit down, by counting.
// The including kernel has 256 threads and defines uvec2 item(uint i): (key, rest), larger is better, first by key; key 0: no item. Items
// differ in pairs, so the best are a set, and no order of counting shows.
// Shared: 1.1 KiB. Barriers: all threads must come here together.

uvec2 item(uint i);

shared uint bins[256], sixteens[16], digit_found[3];

// The order of logits as that of unsigned numbers: both zeros are one, NaN is no item.
uint key_of(float logit) {
    const uint bits = floatBitsToUint(logit);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return 0u;
    if (bits == 0x80000000u) return 0x80000000u;
    return (bits & 0x80000000u) != 0u ? ~bits : bits | 0x80000000u;
}
#define KEY_INFINITY 0xff800000u /* and what is above -infinity's is a number or this */
#define KEY_MINUS_INFINITY 0x007fffffu
float logit_of(uint key) { return uintBitsToFloat((key & 0x80000000u) != 0u ? key & 0x7fffffffu : ~key); }

bool at_least(uvec2 v, uvec2 least) { return v.x > least.x || (v.x == least.x && v.y >= least.y); }

// What an item must at least be to be one of the best `want` (1 or more) of items 0 .. n - 1: exactly so many are, or all where there are
// fewer.
uvec2 least_of_best(uint n, uint want) {
    const uint tid = gl_LocalInvocationID.x;
    uvec2 least = uvec2(0u); // its digits so far; there are `want` items to find among those that begin with them
    for (uint digit = 0u; digit < 8u; digit++) {
        const uint shift = 24u - 8u * (digit & 3u);
        const uvec2 known = digit == 0u ? uvec2(0u)
                            : digit < 4u ? uvec2(0xffffff00u << shift, 0u)
                            : digit == 4u ? uvec2(0xffffffffu, 0u) : uvec2(0xffffffffu, 0xffffff00u << shift);
        bins[tid] = 0u;
        barrier();
        for (uint i = tid; i < n; i += 256u) {
            const uvec2 v = item(i);
            if (v.x != 0u && (v & known) == least) atomicAdd(bins[(digit < 4u ? v.x : v.y) >> shift & 255u], 1u);
        }
        barrier();
        if (tid < 16u) {
            uint sum = 0u;
            for (uint i = 0u; i < 16u; i++) sum += bins[tid * 16u + i];
            sixteens[tid] = sum;
        }
        barrier();
        uint above = 0u;
        for (uint i = (tid >> 4) + 1u; i < 16u; i++) above += sixteens[i];
        for (uint i = tid + 1u; i < (tid | 15u) + 1u; i++) above += bins[i];
        const uint own = bins[tid];
        if (above < want && above + own >= want) {
            digit_found[0] = tid;
            digit_found[1] = want - above;
            digit_found[2] = own;
        } else if (tid == 0u && above + own < want) { // there are fewer than wanted, which the first digit shows
            digit_found[2] = 0u;
        }
        barrier();
        const uint found = digit_found[0], rest = digit_found[1], there = digit_found[2];
        if (there == 0u) return uvec2(1u, 0u);
        if (digit < 4u) least.x |= found << shift;
        else least.y |= found << shift;
        if (there == rest) break; // all that begin so: lower digits tell nothing more
        want = rest;
    }
    return least;
}
