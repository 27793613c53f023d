// Which memory the sm_90a convolution reads and writes, found out on the host and compared with the
// definition.
//
// CUTLASS makes tensor maps and tensors of coordinates on the host. Here the driver's encoding functions are
// replaced by ones that keep what they are given. For each random small convolution, every product of the
// implicit GEMM is then looked up as TMA would: coordinates, corners, strides, zeros outside. Prints the
// number of convolutions, or what differs.
#include <cstdio>
#include <cstring>
#include <cutlass/cuda_host_adapter.hpp>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

namespace {

void expect(bool ok, const std::string& message) {
  if (!ok) throw std::runtime_error(message);
}

struct TensorMap {
  void* base;
  std::vector<int64_t> size, stride;  // strides in bytes
  std::vector<int> lower, upper;      // corners, of im2col maps alone
};

std::vector<TensorMap> encoded;

// The map is opaque to CUTLASS: the number of the entry is all that it holds.
CUresult keep(CUtensorMap* map, TensorMap entry) {
  const size_t number = encoded.size();
  static_assert(sizeof(number) <= sizeof(*map), "the number fits");
  std::memcpy(map, &number, sizeof(number));
  encoded.push_back(std::move(entry));
  return CUDA_SUCCESS;
}

TensorMap tensor_map(cuuint32_t rank, void* base, const cuuint64_t* size, const cuuint64_t* stride) {
  TensorMap entry{base, {}, {2}, {}, {}};
  for (cuuint32_t i = 0; i < rank; ++i) {
    expect(size[i] >= 1 && size[i] <= (cuuint64_t{1} << 32), "a size that TMA does not take");
    entry.size.push_back(static_cast<int64_t>(size[i]));
    if (i == 0) continue;
    expect(stride[i - 1] % 16 == 0 && stride[i - 1] < (cuuint64_t{1} << 40),
           "a stride that TMA does not take");
    entry.stride.push_back(static_cast<int64_t>(stride[i - 1]));
  }
  return entry;
}

}  // namespace

namespace cvk {

struct Checked_cuTensorMapEncodeTiled {
  CUresult operator()(CUtensorMap* map, CUtensorMapDataType, cuuint32_t rank, void* base,
                      const cuuint64_t* size, const cuuint64_t* stride, const cuuint32_t* box,
                      const cuuint32_t*, CUtensorMapInterleave, CUtensorMapSwizzle, CUtensorMapL2promotion,
                      CUtensorMapFloatOOBfill) const {
    for (cuuint32_t i = 0; i < rank; ++i)
      expect(box[i] >= 1 && box[i] <= 256, "a box that TMA does not take");
    return keep(map, tensor_map(rank, base, size, stride));
  }
};

struct Checked_cuTensorMapEncodeIm2col {
  CUresult operator()(CUtensorMap* map, CUtensorMapDataType, cuuint32_t rank, void* base,
                      const cuuint64_t* size, const cuuint64_t* stride, const int* lower, const int* upper,
                      cuuint32_t channels, cuuint32_t pixels, const cuuint32_t* steps, CUtensorMapInterleave,
                      CUtensorMapSwizzle, CUtensorMapL2promotion, CUtensorMapFloatOOBfill) const {
    TensorMap entry = tensor_map(rank, base, size, stride);
    expect(channels <= 256 && pixels <= 1024, "a box that TMA does not take");
    for (int i = 0; i < 3; ++i) {
      expect(lower[i] >= -16 && lower[i] <= 15 && upper[i] >= -16 && upper[i] <= 15, "corners beyond 5 bits");
      expect(steps[1 + i] >= 1 && steps[1 + i] <= 8, "a traversal stride that TMA does not take");
      entry.lower.push_back(lower[i]);
      entry.upper.push_back(upper[i]);
    }
    return keep(map, entry);
  }
};

}  // namespace cvk

#include "cuda/sm90/kernel.cuh"

namespace {

using namespace cvk;
using cute::get;
using Kernel = sm90::Build<cutlass::bfloat16_t, 1>::Kernel;

std::mt19937 engine;

int draw(int low, int high) { return std::uniform_int_distribution<int>(low, high)(engine); }

// Memory of numbers, and a window of these sizes into it.
struct Numbers {
  Tensor5 tensor;
  std::vector<int64_t> memory;

  Numbers(std::array<int64_t, 5> sizes, uintptr_t address, int margin) {
    std::copy(sizes.begin(), sizes.end(), tensor.size);
    int64_t stride = 1;
    for (int d : {1, 4, 3, 2, 0}) {
      tensor.stride[d] = stride;
      // Every second pixel, row or frame of a tensor, or all of those of a slightly larger one.
      const bool second = margin > 0 && draw(0, 2) == 0;
      stride *= second ? 2 * sizes[d] : sizes[d] + (d == 1 ? 8 : 1) * draw(0, margin);
    }
    memory.resize(stride);
    for (int64_t& number : memory) number = draw(-9, 9);
    tensor.data = reinterpret_cast<void*>(address);
  }

  int64_t& at(int64_t b, int64_t c, int64_t t, int64_t h, int64_t w) {
    const int64_t* s = tensor.stride;
    return memory.at(b * s[0] + c * s[1] + t * s[2] + h * s[3] + w * s[4]);
  }
};

template <class Descriptor>
const TensorMap& map_of(const Descriptor* descriptor, const Numbers& numbers) {
  size_t number;
  std::memcpy(&number, descriptor, sizeof(number));
  const TensorMap& map = encoded.at(number);
  expect(map.base == numbers.tensor.data, "a tensor map of another tensor");
  return map;
}

// The element at a coordinate of a map, or nothing outside.
template <class Coordinate>
int64_t* look_up(const TensorMap& map, Numbers& numbers, const Coordinate& coordinate) {
  int64_t bytes = 0;
  size_t d = 0;
  bool inside = true;
  cute::for_each(coordinate, [&](auto value) {
    const int64_t i = value;
    if (d >= map.size.size()) {
      expect(i == 0, "a coordinate of more dimensions than the map");
      return;
    }
    inside = inside && i >= 0 && i < map.size[d];
    bytes += i * map.stride[d];
    ++d;
  });
  return inside ? &numbers.memory.at(bytes / 2) : nullptr;
}

bool compare_one() {
  // Even kernels and zeros on one side: those of folded kernels are among them.
  const int taps[3] = {draw(1, 3), draw(1, 3), draw(1, 5)};
  const int64_t in[3] = {draw(1, 4), draw(1, 5), draw(1, 6)};
  ImplicitConv conv{};
  int64_t out[3];
  for (int d = 0; d < 3; ++d) {
    conv.stride[d] = draw(1, 2);
    conv.dilation[d] = draw(1, 2);
    const int reach = static_cast<int>(conv.dilation[d]) * (taps[d] - 1);
    conv.before[d] = draw(0, reach);
    conv.after[d] = d == 0 ? 0 : draw(0, reach);
    out[d] = output_size(in[d] + conv.before[d] + conv.after[d], taps[d], conv.stride[d], conv.dilation[d]);
    if (out[d] < 1) return false;
  }
  const int64_t batch = draw(1, 2), channels = 8 * draw(1, 2), columns = 8 * draw(1, 2);
  Numbers x({batch, channels, in[0], in[1], in[2]}, 0x10000, 1);
  Numbers weight({columns, channels, taps[0], taps[1], taps[2]}, 0x20000, 0);
  Numbers y({batch, columns, out[0], out[1], out[2]}, 0x30000, 1);
  Numbers residual({batch, columns, out[0], out[1], out[2]}, 0x40000, 1);
  conv.x = x.tensor;
  conv.weight = weight.tensor;
  conv.out = y.tensor;
  conv.residual = &residual.tensor;
  conv.dtype = Dtype::bfloat16;
  check_implicit_conv(conv);

  encoded.clear();
  const auto arguments = sm90::arguments_of<cutlass::bfloat16_t, 1>(conv, 0, 132);
  expect(Kernel::can_implement(arguments), "CUTLASS cannot compute " + describe(conv));
  expect(Kernel::get_workspace_size(arguments) == 0, "CUTLASS asks for a workspace");
  const Kernel::Params params = Kernel::to_underlying_arguments(arguments, nullptr);
  const int m = get<0>(params.problem_shape), n = get<1>(params.problem_shape);
  const auto k = get<2>(params.problem_shape);
  expect(m == batch * out[0] * out[1] * out[2] && n == columns, "another GEMM");
  const auto& loads = params.mainloop;
  const TensorMap& map_a = map_of(loads.tma_load_a.get_tma_descriptor(), x);
  const TensorMap& map_b = map_of(loads.tma_load_b.get_tma_descriptor(), weight);
  const TensorMap& map_c = map_of(params.epilogue.tma_load_c.get_tma_descriptor(), residual);
  const TensorMap& map_d = map_of(params.epilogue.tma_store_d.get_tma_descriptor(), y);
  for (int d = 0; d < 3; ++d) {  // corners stand in the order W, H, T
    expect(map_a.lower[d] == -conv.before[2 - d], "another lower corner");
    expect(map_a.upper[d] == conv.after[2 - d] - conv.dilation[2 - d] * (taps[2 - d] - 1),
           "another upper corner");
  }
  const auto a = loads.tma_load_a.get_tma_tensor(cute::make_shape(m, k));
  const auto b = loads.tma_load_b.get_tma_tensor(cute::make_shape(n, k));
  const auto c = params.epilogue.tma_load_c.get_tma_tensor(cute::make_shape(m, n));
  const auto d = params.epilogue.tma_store_d.get_tma_tensor(cute::make_shape(m, n));

  std::vector<int64_t> expected = y.memory;
  for (int64_t i = 0, row = 0; i < batch; ++i)
    for (int64_t t = 0; t < out[0]; ++t)
      for (int64_t h = 0; h < out[1]; ++h)
        for (int64_t w = 0; w < out[2]; ++w, ++row)
          for (int64_t column = 0; column < columns; ++column) {
            int64_t sum = residual.at(i, column, t, h, w), found = 0;
            for (int64_t r = 0; r < channels * taps[0] * taps[1] * taps[2]; ++r) {
              const int64_t channel = r % channels, s = r / channels % taps[2];
              const int64_t p = r / channels / taps[2] % taps[1], q = r / channels / taps[2] / taps[1];
              const int64_t ft = t * conv.stride[0] + q * conv.dilation[0] - conv.before[0];
              const int64_t fh = h * conv.stride[1] + p * conv.dilation[1] - conv.before[1];
              const int64_t fw = w * conv.stride[2] + s * conv.dilation[2] - conv.before[2];
              if (ft >= 0 && ft < in[0] && fh >= 0 && fh < in[1] && fw >= 0 && fw < in[2])
                sum += x.at(i, channel, ft, fh, fw) * weight.at(column, channel, q, p, s);
              // (c, w, h, d, n) of the window's first pixel, and the tap's offsets (s, r, t) from it.
              const auto depth = cute::make_coord(channel, s, p, q);
              const auto at = cute::flatten(a(row, depth));
              for (int64_t offset : {int64_t(get<5>(at)), int64_t(get<6>(at)), int64_t(get<7>(at))})
                expect(offset >= 0 && offset < 31, "an offset beyond 5 bits");
              const auto pixel = cute::make_tuple(int64_t(get<0>(at)), int64_t(get<1>(at) + get<5>(at)),
                                                  int64_t(get<2>(at) + get<6>(at)),
                                                  int64_t(get<3>(at) + get<7>(at)), int64_t(get<4>(at)));
              const int64_t* factor = look_up(map_a, x, pixel);
              const int64_t* other = look_up(map_b, weight, cute::flatten(b(column, depth)));
              expect(other != nullptr, "a weight outside of the weights");
              found += factor ? *factor * *other : 0;
            }
            const int64_t* added = look_up(map_c, residual, cute::flatten(cute::take<0, 3>(c(row, column))));
            int64_t* target = look_up(map_d, y, cute::flatten(cute::take<0, 3>(d(row, column))));
            expect(added && target, "an output outside of the output");
            *target = found + *added;
            expected.at(&y.at(i, column, t, h, w) - y.memory.data()) = sum;
          }
  expect(y.memory == expected, "other numbers for " + describe(conv));
  return true;
}

}  // namespace

int main(int count, char** values) {
  engine.seed(count > 1 ? std::stoul(values[1]) : 0);
  int compared = 0;
  try {
    for (int i = 0; i < 300; ++i) compared += compare_one();
  } catch (const std::exception& error) {
    std::printf("%s\n", error.what());
    return 1;
  }
  std::printf("%d convolutions read and write what they should\n", compared);
  return 0;
}
