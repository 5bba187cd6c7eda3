// attention_merge.glsl - which positions a row sees, and how a split is added to the splits before it: one order, ascending, in
// every kernel that merges. Expects push constants `p` of sh_pc_attention.
#define NO_SCORE (-3.0e38)

// Positions first .. end - 1; the row's own is always among them. Nothing outside is read: pages wholly before a window may be
// missing.
void visible(sh_p_row row, out uint first, out uint end) {
    const bool both = (p.flags & SH_ATTENTION_BIDIRECTIONAL) != 0u;
    first = 0u;
    end = both ? row.end : row.position + 1u;
    if (p.window == 0u) return;
    const uint reach = both ? p.window / 2u : p.window - 1u;
    first = row.position - min(row.position, reach);
    end = min(end, row.position + (both ? reach : 0u) + 1u);
}

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
