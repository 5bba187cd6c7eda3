// quantise.glsl - activations of the tier intdot: int8 in units of 32. Arithmetic: README.md here. Before it: THREADS, of the workgroup.
//
// A unit is 48 bytes: 8 words of quants, dx, the sums of the first and of the last 16 quants (low and high half, signed), two words unused. Word
// i holds the elements 4i .. 4i + 3, with `pairs` word 2j the even and word 2j + 1 the odd ones of octet j, ascending from the lowest byte: then a
// mask and a shift take a word of 4-bit weights apart. Shared: 12 bytes a thread.
shared uint most_of[THREADS];
shared int sum_of[THREADS];
shared uint quant_of[THREADS];

// Eight threads from a multiple of eight on make unit `unit` of dst of four elements each, unless !wanted. All threads come here.
void quantise(vec4 v, uvec2 dst, uint unit, bool wanted, bool pairs) {
    const uint tid = gl_LocalInvocationID.x, first = tid & ~7u;
    const uvec4 bits = floatBitsToUint(v) & 0x7fffffffu; // magnitudes order as integers do, NaN last
    barrier();
    most_of[tid] = max(max(bits.x, bits.y), max(bits.z, bits.w));
    barrier();
    uint most_bits = 0u;
    [[unroll]] for (uint i = 0u; i < 8u; i++) most_bits = max(most_bits, most_of[first + i]);
    const bool counts = most_bits >= 0x04000000u && most_bits < 0x7f800000u; // 2^-119, infinity
    const float most = uintBitsToFloat(most_bits);
    ivec4 q = ivec4(0);
    if (counts) {
        precise vec4 scaled = v * (127.0 / most);
        q = clamp(ivec4(roundEven(scaled)), ivec4(-127), ivec4(127));
    }
    sum_of[tid] = q.x + q.y + q.z + q.w;
    quant_of[tid] = uint(q.x & 255) | uint(q.y & 255) << 8 | uint(q.z & 255) << 16 | uint(q.w & 255) << 24;
    barrier();
    if (!wanted) return;
    const uint to = unit * 12u;
    uint word = quant_of[tid];
    if (pairs) {
        const uint even = quant_of[tid & ~1u], odd = quant_of[tid | 1u], by = 8u * (tid & 1u);
        word = ((even >> by) & 0xffu) | ((even >> (by + 8u)) & 0xff00u) | ((odd >> by) & 0xffu) << 16 | ((odd >> (by + 16u)) & 0xffu) << 24;
    }
    U32Out(dst).v[to + (tid & 7u)] = word;
    if (tid == first) {
        const int low = sum_of[first] + sum_of[first + 1u] + sum_of[first + 2u] + sum_of[first + 3u];
        const int high = sum_of[first + 4u] + sum_of[first + 5u] + sum_of[first + 6u] + sum_of[first + 7u];
        precise float dx = counts ? most * (1.0 / 127.0) : most_bits >= 0x7f800000u ? uintBitsToFloat(0x7fc00000u) : 0.0;
        U32Out(dst).v[to + 8u] = floatBitsToUint(dx);
        U32Out(dst).v[to + 9u] = uint(low & 0xffff) | uint(high) << 16;
    }
}
