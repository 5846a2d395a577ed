// Barriers in shared memory that asynchronous copies complete on, the bulk tensor copy engine, and what blocks of a
// cluster share. Barriers and cp.async are there from sm_80 on, the rest from sm_90 on.
#pragma once

#include <cstdint>

#include "kernels/common/mma.cuh"

namespace fdpp {

// An mbarrier. Every phase ends when the counted arrivals (and announced bytes) are there; waiters name the phase's
// parity.
struct Barrier {
  uint64_t word;

  __device__ __forceinline__ void init(uint32_t arrivals) {
    asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(shared_address(this)), "r"(arrivals) : "memory");
  }

  __device__ __forceinline__ void arrive() {
    asm volatile("{\n.reg .b64 state;\nmbarrier.arrive.shared.b64 state, [%0];\n}" ::"r"(shared_address(this))
                 : "memory");
  }

  // Gives back memory that the thread's warp has read: arrives once `read`, bits that depend on all that was loaded, is in
  // registers. arrive() may be issued while loads are still under way, and where another process preempts the GPU just
  // then, the memory can be written anew before they are done.
  __device__ __forceinline__ void arrive_after(uint32_t read) {
    // Adds 0 to the address, which the compiler cannot know: no grid has a third dimension.
    asm volatile(
        "{\n.reg .b32 zero, place;\n.reg .b64 state;\nmov.u32 zero, %%ctaid.z;\nand.b32 zero, zero, %1;\n"
        "add.u32 place, %0, zero;\nmbarrier.arrive.shared.b64 state, [place];\n}" ::"r"(shared_address(this)),
        "r"(read)
        : "memory");
  }

  // Arrives for the calling thread once its earlier cp.async copies are there; counts as one of the arrivals.
  __device__ __forceinline__ void arrive_after_copies() {
    asm volatile("cp.async.mbarrier.arrive.noinc.shared.b64 [%0];" ::"r"(shared_address(this)) : "memory");
  }

  __device__ __forceinline__ bool passed(uint32_t parity) {
    uint32_t done;
#if __CUDA_ARCH__ >= 900
    asm volatile("{\n.reg .pred p;\nmbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\nselp.u32 %0, 1, 0, p;\n}"
                 : "=r"(done)
                 : "r"(shared_address(this)), "r"(parity)
                 : "memory");
#else
    asm volatile("{\n.reg .pred p;\nmbarrier.test_wait.parity.shared.b64 p, [%1], %2;\nselp.u32 %0, 1, 0, p;\n}"
                 : "=r"(done)
                 : "r"(shared_address(this)), "r"(parity)
                 : "memory");
#endif
    return done != 0;
  }

  __device__ __forceinline__ void wait(uint32_t parity) {
    while (!passed(parity)) {
    }
  }

  // ---- sm_90 from here on

  // One arrival, and `bytes` more to come from the copy engine.
  __device__ __forceinline__ void arrive_expecting(uint32_t bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(this)), "r"(bytes)
                 : "memory");
  }

  // The same for bytes that other blocks of the cluster store.
  __device__ __forceinline__ void wait_cluster(uint32_t parity) {
    uint32_t done = 0;
    while (done == 0) {
      asm volatile(
          "{\n.reg .pred p;\nmbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 p, [%1], %2;\n"
          "selp.u32 %0, 1, 0, p;\n}"
          : "=r"(done)
          : "r"(shared_address(this)), "r"(parity)
          : "memory");
    }
  }
};

// Makes freshly initialised barriers visible to the copy engine and to other blocks of the cluster.
__device__ __forceinline__ void publish_barriers() {
#if __CUDA_ARCH__ >= 900
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
#endif
}

// A barrier of `threads` threads of the block, a multiple of 32; `id` 1 to 15.
__device__ __forceinline__ void sync_threads(int id, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}
// Counts the calling threads in at such a barrier without waiting there.
__device__ __forceinline__ void arrive_threads(int id, int threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}
// sync_threads, and whether `value` holds in all of them.
__device__ __forceinline__ bool sync_threads_and(int id, int threads, bool value) {
  uint32_t all;
  asm volatile(
      "{\n.reg .pred p, q;\nsetp.ne.u32 p, %1, 0;\nbar.red.and.pred q, %2, %3, p;\nselp.u32 %0, 1, 0, q;\n}"
      : "=r"(all)
      : "r"(static_cast<uint32_t>(value)), "r"(id), "r"(threads)
      : "memory");
  return all != 0;
}

// For what is read once a step and fills the L2 many times over: it leaves first, so that what the kernels of a layer hand
// each other stays.
__device__ __forceinline__ uint64_t evict_first_policy() {
  uint64_t policy;
  asm volatile("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
  return policy;
}

// A box of a tensor into shared memory; `barrier` is told its bytes. One thread calls.
__device__ __forceinline__ void copy_box(void* to, const CUtensorMap* map, int x, int y, int z, Barrier* barrier) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5}], [%2];"
      ::"r"(shared_address(to)), "l"(map), "r"(shared_address(barrier)), "r"(x), "r"(y), "r"(z)
      : "memory");
}
// The same with an L2 policy.
__device__ __forceinline__ void copy_box(void* to, const CUtensorMap* map, int x, int y, int z, Barrier* barrier,
                                         uint64_t policy) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], "
      "[%1, {%3, %4, %5}], [%2], %6;" ::"r"(shared_address(to)),
      "l"(map), "r"(shared_address(barrier)), "r"(x), "r"(y), "r"(z), "l"(policy)
      : "memory");
}
// The same for a map with groups: of all of them, from column 0 on.
__device__ __forceinline__ void copy_groups(void* to, const CUtensorMap* map, int y, int z, Barrier* barrier,
                                            uint64_t policy) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], "
      "[%1, {%3, %4, %3, %5}], [%2], %6;" ::"r"(shared_address(to)),
      "l"(map), "r"(shared_address(barrier)), "r"(0), "r"(y), "r"(z), "l"(policy)
      : "memory");
}
// A box of shared memory into a tensor, but for what lies outside it. One thread calls, commits and waits.
__device__ __forceinline__ void store_box(const CUtensorMap* map, int x, int y, int z, const void* from) {
  asm volatile("cp.async.bulk.tensor.3d.global.shared::cta.bulk_group [%0, {%2, %3, %4}], [%1];" ::"l"(map),
               "r"(shared_address(from)), "r"(x), "r"(y), "r"(z)
               : "memory");
}
__device__ __forceinline__ void commit_stores() { asm volatile("cp.async.bulk.commit_group;" ::: "memory"); }
// Waits until this thread's stores have read their shared memory.
__device__ __forceinline__ void wait_for_store_reads() { asm volatile("cp.async.bulk.wait_group.read 0;" ::: "memory"); }
// Waits until they have arrived.
__device__ __forceinline__ void wait_for_stores() { asm volatile("cp.async.bulk.wait_group 0;" ::: "memory"); }
// Shared memory written by ordinary stores becomes visible to the copy engine and to products of warpgroups.
__device__ __forceinline__ void publish_to_async_proxy() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// The box that copy_box or copy_groups would bring, into the L2. Harmless where someone is about to write there.
__device__ __forceinline__ void prefetch_box(const CUtensorMap* map, int x, int y, int z) {
  asm volatile("cp.async.bulk.prefetch.tensor.3d.L2.global [%0, {%1, %2, %3}];" ::"l"(map), "r"(x), "r"(y), "r"(z)
               : "memory");
}
__device__ __forceinline__ void prefetch_groups(const CUtensorMap* map, int y, int z) {
  asm volatile("cp.async.bulk.prefetch.tensor.4d.L2.global [%0, {%1, %2, %1, %3}];" ::"l"(map), "r"(0), "r"(y), "r"(z)
               : "memory");
}

__device__ __forceinline__ void prefetch_map(const CUtensorMap* map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}

// Without making ordinary stores visible, which takes as long as they do: enough after publish_barriers(), or where the
// thread has written nothing that others read.
__device__ __forceinline__ void cluster_arrive_relaxed() {
#if __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory");
#endif
}
__device__ __forceinline__ void cluster_arrive() {
#if __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.arrive.aligned;" ::: "memory");
#endif
}
__device__ __forceinline__ void cluster_wait() {
#if __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.wait.aligned;" ::: "memory");
#endif
}

// Which block of its cluster this is, and which cluster of the grid; 0 and the block's index without clusters.
__device__ __forceinline__ int cluster_rank() {
  int rank = 0;
#if __CUDA_ARCH__ >= 900
  asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
#endif
  return rank;
}
__device__ __forceinline__ int cluster_index() {
  int index = static_cast<int>(blockIdx.x);
#if __CUDA_ARCH__ >= 900
  asm("mov.u32 %0, %%clusterid.x;" : "=r"(index));
#endif
  return index;
}

// The address in block `rank`'s shared memory of what lies at `p` in this block's.
__device__ __forceinline__ uint32_t remote_address(const void* p, uint32_t rank) {
  uint32_t remote = 0;
#if __CUDA_ARCH__ >= 900
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(remote) : "r"(shared_address(p)), "r"(rank));
#endif
  return remote;
}
// Stores into another block of the cluster; the barrier there, at `barrier`, is told the bytes once they have arrived.
__device__ __forceinline__ void store_remote(uint32_t address, const float4& v, uint32_t barrier) {
  asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.v4.f32 [%0], {%1, %2, %3, %4}, [%5];" ::"r"(address),
               "f"(v.x), "f"(v.y), "f"(v.z), "f"(v.w), "r"(barrier)
               : "memory");
}
__device__ __forceinline__ void store_remote(uint32_t address, const float2& v, uint32_t barrier) {
  asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.v2.f32 [%0], {%1, %2}, [%3];" ::"r"(address),
               "f"(v.x), "f"(v.y), "r"(barrier)
               : "memory");
}

__device__ __forceinline__ float load_remote(uint32_t address) {
  float v = 0;
#if __CUDA_ARCH__ >= 900
  asm volatile("ld.shared::cluster.f32 %0, [%1];" : "=f"(v) : "r"(address) : "memory");
#endif
  return v;
}
__device__ __forceinline__ float4 load_remote_4(uint32_t address) {
  float4 v = {};
#if __CUDA_ARCH__ >= 900
  asm volatile("ld.shared::cluster.v4.f32 {%0, %1, %2, %3}, [%4];"
               : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w)
               : "r"(address)
               : "memory");
#endif
  return v;
}

// Programmatic dependent launch: nothing that an earlier kernel of the stream may write or read is touched before
// wait_for_predecessor(); release_successor() lets the next kernel's blocks start where there is room.
__device__ __forceinline__ void wait_for_predecessor() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
__device__ __forceinline__ void release_successor() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

}  // namespace fdpp
