// head.glsl - what every kernel includes: extensions, parameter structs, references to memory by address.
#extension GL_EXT_buffer_reference : require
#extension GL_EXT_buffer_reference_uvec2 : require
#extension GL_EXT_shader_16bit_storage : require
#extension GL_EXT_control_flow_attributes : require
#extension GL_GOOGLE_include_directive : require
#include "params.h"

layout(buffer_reference, std430, buffer_reference_align = 16) readonly buffer Step { sh_p_step v; };
layout(buffer_reference, std430, buffer_reference_align = 8) readonly buffer Rows { sh_p_row v[]; };
layout(buffer_reference, std430, buffer_reference_align = 8) readonly buffer Sequences { sh_p_sequence v[]; };
layout(buffer_reference, std430, buffer_reference_align = 16) readonly buffer Outputs { sh_p_output v[]; };
layout(buffer_reference, std430, buffer_reference_align = 8) readonly buffer Items { sh_p_item v[]; };
layout(buffer_reference, std430, buffer_reference_align = 8) readonly buffer Pages { uvec2 v[]; };
layout(buffer_reference, std430, buffer_reference_align = 4) readonly buffer U32 { uint v[]; };
layout(buffer_reference, std430, buffer_reference_align = 4) writeonly buffer U32Out { uint v[]; };
layout(buffer_reference, std430, buffer_reference_align = 8) readonly buffer U64 { uvec2 v[]; };
layout(buffer_reference, std430, buffer_reference_align = 8) writeonly buffer U64Out { uvec2 v[]; };
layout(buffer_reference, std430, buffer_reference_align = 16) readonly buffer U128 { uvec4 v[]; };
layout(buffer_reference, std430, buffer_reference_align = 4) readonly buffer F32 { float v[]; };
layout(buffer_reference, std430, buffer_reference_align = 4) writeonly buffer F32Out { float v[]; };
layout(buffer_reference, std430, buffer_reference_align = 8) readonly buffer F64 { vec2 v[]; };
layout(buffer_reference, std430, buffer_reference_align = 16) writeonly buffer U128Out { uvec4 v[]; };
layout(buffer_reference, std430, buffer_reference_align = 16) readonly buffer F128 { vec4 v[]; };
layout(buffer_reference, std430, buffer_reference_align = 16) writeonly buffer F128Out { vec4 v[]; };
layout(buffer_reference, std430, buffer_reference_align = 2) writeonly buffer U16Out { uint16_t v[]; };

// 64-bit addition of a byte offset to an address.
uvec2 at(uvec2 address, uint offset) {
    uint carry;
    uint low = uaddCarry(address.x, offset, carry);
    return uvec2(low, address.y + carry);
}
