// math.glsl - functions whose precision Vulkan leaves open, made of exp (3 + 2 |x| units in the last place) and division (2.5 units).
// Relative errors are stated in units of 2^-24. NaN stays NaN. Operations are `precise`: the same bits in every kernel.

// From 0.55 on (1 - e) / (1 + e) with e = exp(-2 |x|) <= 1/3: exp's 10 units become 8, with the division and the sums 16. Below
// the Pade quotient [5/4] around 0, which is off by z^5 / (945^2 * 11) < 0.01 units: roundings, 16 units.
float tanh_of(float x) {
    const float a = abs(x), z = x * x;
    precise float top = x * ((z + 105.0) * z + 945.0), bottom = (15.0 * z + 420.0) * z + 945.0;
    const float e = exp(-2.0 * a);
    precise float far = (1.0 - e) / (1.0 + e), near = top / bottom;
    return a < 0.55 ? near : x < 0.0 ? -far : far;
}

float sigmoid_of(float x) {
    precise float y = 1.0 / (1.0 + exp(-x));
    return y;
}

// log(1 + exp(x)) = max(x, 0) + log(1 + e), e = exp(-|x|); the logarithm is 2 atanh(e / (2 + e)), whose series in z <= 1/9 is cut
// where the rest is below 0.25 units. With exp's own: 20 + 4 |x| units.
float softplus_of(float x) {
    const float e = exp(-abs(x));
    precise float s = e / (2.0 + e), z = s * s;
    precise float series = 1.0 / 13.0;
    series = fma(series, z, 1.0 / 11.0);
    series = fma(series, z, 1.0 / 9.0);
    series = fma(series, z, 1.0 / 7.0);
    series = fma(series, z, 1.0 / 5.0);
    series = fma(series, z, 1.0 / 3.0);
    series = fma(series, z, 1.0);
    precise float y = max(x, 0.0) + 2.0 * s * series;
    return y;
}

// x times the normal distribution function, (1 + erf(x / sqrt 2)) / 2. erfc by Abramowitz and Stegun 7.1.26, off by at most 1.5e-7;
// with roundings the result is off by |x| * 3e-7.
float gelu_erf_of(float x) {
    const float u = abs(x) * 0.70710678;
    precise float t = 1.0 / (1.0 + 0.3275911 * u);
    precise float series = 1.061405429;
    series = fma(series, t, -1.453152027);
    series = fma(series, t, 1.421413741);
    series = fma(series, t, -0.284496736);
    series = fma(series, t, 0.254829592);
    precise float upper = 0.5 * series * t * exp(-u * u);
    precise float y = x < 0.0 ? x * upper : x * (1.0 - upper);
    return y;
}

// 0.5 x (1 + tanh(u)) = x / (1 + exp(-2 u)), u = sqrt(2 / pi) (x + 0.044715 x^3): no cancellation for negative x.
float gelu_of(float x) {
    precise float u = x + 0.044715 * x * x * x;
    precise float y = x / (1.0 + exp(-1.5957691216 * u));
    return y;
}

float silu_of(float x) {
    precise float y = x / (1.0 + exp(-x));
    return y;
}
