// The functions that XLA calls: arrays to pointers, lanes and rows to threads.
//
// Arrays may have axes of lanes in front, from jax.vmap, each of the size of all lanes
// or of 1 if lanes share the array. An array without elements stands for none.
#include <cstdlib>
#include <memory>
#include <string>
#include <vector>

#include "parallel.h"
#include "problem.h"
#include "xla/ffi/api/ffi.h"

namespace rdrop {

// The attributes of a call.
struct Options {
  int64_t cell, cell_noise, hidden_noise, axes;
  bool time_major, reverse;
};

}  // namespace rdrop

XLA_FFI_REGISTER_STRUCT_ATTR_DECODING(
    rdrop::Options, StructMember<int64_t>("cell"), StructMember<int64_t>("cell_noise"),
    StructMember<int64_t>("hidden_noise"), StructMember<int64_t>("axes"),
    StructMember<bool>("time_major"), StructMember<bool>("reverse"));

namespace rdrop {

extern const Kernels kernels_portable;
#ifdef RDROP_X86
extern const Kernels kernels_avx2;
extern const Kernels kernels_avx512;
#endif

namespace {

namespace ffi = xla::ffi;

// The widest instruction set of the processor; tests ask for others by name.
const Kernels& widest() {
#ifdef RDROP_X86
  const char* name = std::getenv("RDROP_CPU_INSTRUCTIONS");
  const std::string wanted = name ? name : "";
  if (wanted == "portable") return kernels_portable;
  if (wanted != "avx2" && __builtin_cpu_supports("avx512f") &&
      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq")) {
    return kernels_avx512;
  }
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
    return kernels_avx2;
  }
#endif
  return kernels_portable;
}

const Kernels& kernels() {
  static const Kernels& chosen = widest();
  return chosen;
}

struct Free {
  void operator()(float* memory) const { std::free(memory); }
};
using Memory = std::unique_ptr<float, Free>;

Memory allocate(Index floats) {
  const std::size_t bytes = (floats * sizeof(float) + 63) / 64 * 64;
  return Memory(static_cast<float*>(std::aligned_alloc(64, bytes)));
}

// The lanes of a call: sizes of the axes in front, and the array of a lane.
class Lanes {
 public:
  Lanes(ffi::Span<const int64_t> dims, Index axes)
      : sizes_(dims.begin(), dims.begin() + axes) {}

  Index count() const {
    Index count = 1;
    for (Index size : sizes_) count *= size;
    return count;
  }

  // The first element of a lane; null if the array has no elements.
  template <class T>
  T* of(const ffi::AnyBuffer& buffer, Index lane) const {
    Index elements = buffer.element_count();
    if (elements == 0) return nullptr;
    Index offset = 0, stride = 1;
    const auto dims = buffer.dimensions();
    for (std::size_t n = sizes_.size(); n < dims.size(); ++n) stride *= dims[n];
    for (std::size_t n = sizes_.size(); n-- > 0; lane /= sizes_[n]) {
      if (dims[n] > 1) offset += lane % sizes_[n] * stride;
      stride *= dims[n];
    }
    return static_cast<T*>(buffer.untyped_data()) + offset;
  }

  Mask mask(const ffi::AnyBuffer& buffer, Index lane) const {
    Mask mask;
    mask.data = of<const float>(buffer, lane);
    if (!mask) return mask;
    const auto dims = buffer.dimensions();
    const std::size_t last = dims.size();
    const Index units = dims[last - 1], gates = dims[last - 2], rows = dims[last - 3];
    mask.gates = gates;
    mask.per_gate = gates > 1 ? units : 0;
    mask.per_row = rows > 1 ? gates * units : 0;
    mask.per_step = last - sizes_.size() > 3 ? rows * gates * units : 0;
    return mask;
  }

 private:
  std::vector<Index> sizes_;
};

// Positions of the arguments that both functions have first.
enum Argument { kXs, kKernel, kRecurrentKernel, kInputs, kRecurrent, kUpdate, kGates,
                kCellState, kHiddenState, kValid, kResets, kOwn };

class Call {
 public:
  Call(const Options& options, const ffi::RemainingArgs& args,
       const ffi::RemainingRets& rets)
      : options_(options), args_(args), rets_(rets),
        lanes_(arg(kXs).dimensions(), options.axes) {}

  const Lanes& lanes() const { return lanes_; }

  ffi::AnyBuffer arg(Index n) const { return args_.get<ffi::AnyBuffer>(n).value(); }

  template <class T = const float>
  T* in(Index n, Index lane) const {
    return lanes_.of<T>(arg(n), lane);
  }

  float* out(Index n, Index lane) const {
    return lanes_.of<float>(*rets_.get<ffi::AnyBuffer>(n).value(), lane);
  }

  // What both functions have of a lane.
  Problem problem(Index lane) const {
    Problem p{};
    const Index axes = options_.axes;
    const auto xs = arg(kXs).dimensions();
    p.cell = static_cast<CellKind>(options_.cell);
    p.time_major = options_.time_major;
    p.reverse = options_.reverse;
    p.T = xs[axes + (p.time_major ? 0 : 1)];
    p.B = xs[axes + (p.time_major ? 1 : 0)];
    p.D = xs[axes + 2];
    p.H = arg(kRecurrentKernel).dimensions()[axes];
    p.xs = in(kXs, lane);
    p.kernel = in(kKernel, lane);
    p.recurrent_kernel = in(kRecurrentKernel, lane);
    p.inputs = lanes_.mask(arg(kInputs), lane);
    p.recurrent = lanes_.mask(arg(kRecurrent), lane);
    p.update = lanes_.mask(arg(kUpdate), lane);
    p.gates = lanes_.mask(arg(kGates), lane);
    p.cell_state = lanes_.mask(arg(kCellState), lane);
    p.hidden_state = lanes_.mask(arg(kHiddenState), lane);
    p.cell_noise = static_cast<StateNoise>(options_.cell_noise);
    p.hidden_noise = static_cast<StateNoise>(options_.hidden_noise);
    p.valid = in<const std::uint8_t>(kValid, lane);
    p.resets = in<const std::uint8_t>(kResets, lane);
    return p;
  }

 private:
  Options options_;
  const ffi::RemainingArgs& args_;
  const ffi::RemainingRets& rets_;
  Lanes lanes_;
};

// Runs a loop over all lanes. Rows of a lane are divided only if there are fewer lanes
// than threads; each lane then has packed kernels that its threads share.
template <class Problems, class Loop>
void run_loops(Workers& workers, const Problems& problems, bool backward,
               const Loop& loop) {
  const Kernels& table = kernels();
  const Index lanes = problems.size();
  const Problem& like = problems[0];
  const Index size = table.packed_size(like, backward);
  const Index packs = table.pack_parts(like);
  const Index blocks =
      std::max<Index>(1, std::min(like.B, (workers.most() + lanes - 1) / lanes));
  std::vector<Memory> packed(lanes);
  if (blocks > 1) {
    for (Memory& memory : packed) memory = allocate(size);
    workers.run(lanes * packs, [&](Index part) {
      table.pack(problems[part / packs], backward, part % packs,
                 packed[part / packs].get());
    });
  }
  workers.run(lanes * blocks, [&](Index part) {
    const Index lane = part / blocks, block = part % blocks;
    const Problem& p = problems[lane];
    Memory own;
    if (blocks == 1) {
      own = allocate(size);
      for (Index n = 0; n < packs; ++n) table.pack(p, backward, n, own.get());
    }
    const float* kernel = own ? own.get() : packed[lane].get();
    loop(p, kernel, p.B * block / blocks, p.B * (block + 1) / blocks);
  });
}

std::vector<Problem> problems_of(const Call& call) {
  std::vector<Problem> problems;
  for (Index lane = 0; lane < call.lanes().count(); ++lane) {
    problems.push_back(call.problem(lane));
  }
  return problems;
}

ffi::Error forward(ffi::ThreadPool pool, Options options, ffi::RemainingArgs args,
                   ffi::RemainingRets rets) {
  const Call call(options, args, rets);
  std::vector<Problem> problems = problems_of(call);
  for (std::size_t lane = 0; lane < problems.size(); ++lane) {
    Problem& p = problems[lane];
    p.bias = call.in(kOwn, lane);
    p.recurrent_bias = call.in(kOwn + 1, lane);
    p.c0 = call.in(kOwn + 2, lane);
    p.h0 = call.in(kOwn + 3, lane);
    p.ys = call.out(0, lane);
    p.c_last = call.out(1, lane);
    p.h_last = call.out(2, lane);
    p.kept = call.out(3, lane);
    p.cs = call.out(4, lane);
    p.hs = call.out(5, lane);
  }
  Workers workers(pool);
  run_loops(workers, problems, false, kernels().forward);
  return ffi::Error::Success();
}

ffi::Error backward(ffi::ThreadPool pool, Options options, ffi::RemainingArgs args,
                    ffi::RemainingRets rets) {
  const Call call(options, args, rets);
  std::vector<Problem> problems = problems_of(call);
  for (std::size_t lane = 0; lane < problems.size(); ++lane) {
    Problem& p = problems[lane];
    const float* kept = call.in(kOwn, lane);
    p.cs = const_cast<float*>(call.in(kOwn + 1, lane));
    p.hs = const_cast<float*>(call.in(kOwn + 2, lane));
    p.d_ys = call.in(kOwn + 3, lane);
    p.d_c_last = call.in(kOwn + 4, lane);
    p.d_h_last = call.in(kOwn + 5, lane);
    p.kept = call.out(0, lane);
    if (p.kept != kept) {
      return ffi::Error::Internal("the residuals must be given to be overwritten");
    }
    p.d_xs = call.out(1, lane);
    p.d_c0 = call.out(2, lane);
    p.d_h0 = call.out(3, lane);
    p.d_kernel = call.out(4, lane);
    p.d_recurrent_kernel = call.out(5, lane);
    p.d_bias = call.out(6, lane);
    p.d_recurrent_bias = call.out(7, lane);
  }
  Workers workers(pool);
  run_loops(workers, problems, true, kernels().backward);
  const Index parts = kernels().gradient_parts(problems[0]);
  workers.run(problems.size() * parts, [&](Index part) {
    kernels().gradient(problems[part / parts], part % parts);
  });
  return ffi::Error::Success();
}

auto binding() {
  return ffi::Ffi::Bind()
      .Ctx<ffi::ThreadPool>()
      .Attrs<Options>()
      .RemainingArgs()
      .RemainingRets();
}

}  // namespace
}  // namespace rdrop

#pragma GCC visibility push(default)
XLA_FFI_DEFINE_HANDLER_SYMBOL(rdrop_cpu_forward, rdrop::forward, rdrop::binding());
XLA_FFI_DEFINE_HANDLER_SYMBOL(rdrop_cpu_backward, rdrop::backward, rdrop::binding());
#pragma GCC visibility pop
