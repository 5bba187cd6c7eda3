// rows.glsl - what a workgroup of a product (matmul.comp, tile.comp) works on: `size` rows and one matrix. Push constants: sh_pc_matmul p.
//
//   plain    grid y counts blocks of `size` rows; the matrix is the part
//   blocks   the same, grid z is the block: p.n rows of the part, p.cols inputs and p.n outputs of a row from those of block 0 on
//   experts  rows are pairs of a row and a slot (p.experts = n_used | n_expert << 16); the matrix is an expert's p.n rows. One pair: grid
//            y is the row, z the slot, the expert stands in the ROUTE's result at p.residual. More: grid y, then z count the items
//            of the list at p.residual, {expert, first pair, pairs, 0} each, p.residual_stride of them, then the pairs (expert_list.comp).
//   glu      rows as with plain; the part holds two matrices of p.n rows each, one below the other, and output n is the GLU p.experts of the
//            two products n, each with its bias. Kernels of few rows, whose OUTPUTS products of a thread or group of lanes are then the same
//            OUTPUTS / 2 of either matrix.

uint n_here;  // rows of this workgroup, at least 1
uint w_row;   // row of the part that makes output 0
uint bias_at; // of output 0
uint first_row, x_column, dst_column;
uint block_number; // this workgroup's rows are the block of `size` rows, or the item of the list, of that number

// An expert's number, as a ROUTE writes it; whatever stands there, it is one of n_expert.
uint expert_number(float e, uint n_expert) { return e < float(n_expert) ? uint(max(e, 0.0)) : n_expert - 1u; }

// False: nothing to do here. The same for all threads of the workgroup.
bool find_rows(uint size) {
    const uint total = (p.flags & SH_MATMUL_BY_OUTPUT) != 0u ? Step(p.step).v.n_outputs : Step(p.step).v.n_rows;
    const uint y = gl_WorkGroupID.y, z = gl_WorkGroupID.z;
    if ((p.flags & SH_MATMUL_EXPERTS) == 0u) {
        first_row = y * size;
        n_here = min(size, total - min(total, first_row));
        w_row = z * p.n;
        bias_at = dst_column = p.first_n + w_row;
        x_column = p.part + z * p.cols;
        block_number = y;
        return n_here > 0u;
    }
    uint expert;
    x_column = 0u;
    if (size == 1u) {
        if (y >= total) return false;
        first_row = y * (p.experts & 0xffffu) + z;
        n_here = 1u;
        expert = expert_number(F32(p.residual).v[y * p.residual_stride + z], p.experts >> 16);
    } else {
        const uint at = y + z * gl_NumWorkGroups.y;
        if (at >= p.residual_stride) return false;
        const uvec4 item = U128(p.residual).v[at];
        expert = item.x;
        first_row = item.y;
        n_here = item.z;
        block_number = at;
        if (n_here == 0u) return false;
    }
    w_row = (expert - p.first_n) * p.n;
    bias_at = expert * p.n;
    return expert >= p.first_n && expert - p.first_n < p.part;
}

// Where row r of the workgroup begins in x and in dst (and the residual); rows beyond the last repeat it.
void row_at(uint r, uint size, out uint x_at, out uint dst_at, out uint residual_at) {
    const uint at = first_row + min(r, n_here - 1u);
    if ((p.flags & SH_MATMUL_EXPERTS) == 0u) {
        x_at = at * p.x_stride + x_column;
        dst_at = at * p.dst_stride + dst_column;
        residual_at = at * p.residual_stride + dst_column;
        return;
    }
    const uint pair = size == 1u ? at : U32(p.residual).v[4u * p.residual_stride + at];
    const uint n_used = p.experts & 0xffffu, row = pair / n_used, slot = pair - row * n_used;
    x_at = row * p.x_stride + ((p.flags & SH_MATMUL_PER_SLOT) != 0u ? slot * p.cols : 0u);
    dst_at = row * p.dst_stride + slot * p.n;
    residual_at = 0u;
}

// What x holds from `k` on, zeros beyond the row's end; x_at need not be a multiple of four.
vec4 load_x(uint x_at, uint k) {
    if (k + 4u <= p.cols && (x_at & 3u) == 0u) return F128(p.x).v[(x_at + k) >> 2];
    vec4 v = vec4(0.0);
    if (k < p.cols) v.x = F32(p.x).v[x_at + k];
    if (k + 1u < p.cols) v.y = F32(p.x).v[x_at + k + 1u];
    if (k + 2u < p.cols) v.z = F32(p.x).v[x_at + k + 2u];
    if (k + 3u < p.cols) v.w = F32(p.x).v[x_at + k + 3u];
    return v;
}

// What is added to the product of output n and stored.
void store(uint n, uint dst_at, uint residual_at, float sum) {
    precise float y = sum;
    if ((p.flags & SH_MATMUL_BIAS) != 0u) y = y + F32(p.bias).v[bias_at + n];
    if ((p.flags & SH_MATMUL_RESIDUAL) != 0u) y = y + F32(p.residual).v[residual_at + n];
    F32Out(p.dst).v[dst_at + n] = y;
}

#ifdef OUTPUTS
#include "glu.glsl"
#define HALF (OUTPUTS / 2u)

bool is_glu() { return (p.flags & SH_MATMUL_GLU) != 0u; }
uint outputs_each() { return is_glu() ? HALF : OUTPUTS; } // that a thread or group makes

// The part's row of product o < OUTPUTS of those who make the outputs n0, n0 + apart, ...; of the last output for those beyond it.
uint product_row(uint n0, uint o, uint apart) {
    const bool second = is_glu() && o >= HALF;
    return w_row + min(n0 + (second ? o - HALF : o) * apart, p.n - 1u) + (second ? p.n : 0u);
}

// The GLU of products of the first and of the second matrix.
void store_glu(uint n, uint dst_at, float first, float second) {
    precise float x = first, y = second;
    if ((p.flags & SH_MATMUL_BIAS) != 0u) {
        x = x + F32(p.bias).v[bias_at + n];
        y = y + F32(p.bias).v[bias_at + p.n + n];
    }
    const bool swapped = (p.flags & SH_MATMUL_SWAPPED) != 0u;
    F32Out(p.dst).v[dst_at + n] = glu_of(p.experts, swapped ? y : x, swapped ? x : y);
}
#endif
