// attention_merge.glsl - adds a split to the splits before it. One order, ascending, in every kernel that merges.
void merge_scales(float m_all, float m_part, out float m, out float keep, out float take) {
    m = max(m_all, m_part);
    keep = exp(m_all - m);
    take = exp(m_part - m);
}
float merge(float all, float part, float keep, float take) {
    precise float kept = all * keep;
    precise float v = fma(part, take, kept);
    return v;
}
