// How parts of a query row's result, each with a reference of its own, become one.
#pragma once

#include "kernels/attention/cuda/args.cuh"

namespace fdpp {

// Sums with one reference: m, the reference; l, the sum of weights; left: some part left phi's interval.
struct JointSum {
  float4 sum = make_float4(0, 0, 0, 0);
  float m = -INFINITY;
  float l = 0;
  bool left = false;

  // Joins N more parts at once; `norms` as DecodeTile::norm() gives them, m = -inf for a part that is none.
  template <int N>
  __device__ __forceinline__ void add(const float2 (&norms)[N], const float4 (&parts)[N]) {
    float top = m;
#pragma unroll
    for (int i = 0; i < N; ++i) top = fmaxf(top, norms[i].x);
    if (top == -INFINITY) return;
    const float own = exp2_approx(m - top);
    l *= own;
    sum.x *= own;
    sum.y *= own;
    sum.z *= own;
    sum.w *= own;
#pragma unroll
    for (int i = 0; i < N; ++i) {
      const float weight = exp2_approx(norms[i].x - top);
      l += fabsf(norms[i].y) * weight;
      left = left || signbit(norms[i].y);
      sum.x += parts[i].x * weight;
      sum.y += parts[i].y * weight;
      sum.z += parts[i].z * weight;
      sum.w += parts[i].w * weight;
    }
    m = top;
  }
  __device__ __forceinline__ float2 norm() const { return make_float2(m, left ? -l : l); }
};

}  // namespace fdpp
