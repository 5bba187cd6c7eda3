// attention_merge.glsl - which positions a row sees, and how a split is added to the splits before it: one order, ascending, in
// every kernel that merges. Expects push constants `p` of sh_pc_attention.
#define NO_SCORE (-3.0e38)

// Positions first .. end - 1 are seen by the row at `position` of a sequence of row_end positions; its own is always among them. Both
// grow with the position. Nothing outside is read: pages wholly before a window may be missing. vulkan/step.c has its twin.
void visible(uvec4 position, uvec4 row_end, out uvec4 first, out uvec4 end) {
    const bool bidirectional = (p.flags & SH_ATTENTION_BIDIRECTIONAL) != 0u;
    first = uvec4(0u);
    end = bidirectional ? row_end : position + 1u;
    if (p.window == 0u) return;
    const uint reach = bidirectional ? p.window / 2u : p.window - 1u;
    first = position - min(position, uvec4(reach));
    end = min(end, position + (bidirectional ? reach : 0u) + 1u);
}
void visible(uint position, uint row_end, out uint first, out uint end) {
    uvec4 firsts, ends;
    visible(uvec4(position), uvec4(row_end), firsts, ends);
    first = firsts.x;
    end = ends.x;
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
