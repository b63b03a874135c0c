// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <atomic>
#include <cstring>
#include <type_traits>

#include "ops/nearest.h"
#include "ops/ops.h"
#include "ops/packed_rows.h"
#include "runtime/dispatch.h"
#include "runtime/pool.h"
#include "runtime/scratch.h"

namespace nibblas {
namespace {

// Bytes of weights worth a thread: about 20 us of packing.
constexpr int64_t kBytesPerThread = int64_t{1} << 17;

// Dense outputs of so many bytes are written past the caches: who reads them finds little there
// anyway, and a line need not be read before it is written.
constexpr int64_t kPastCaches = int64_t{32} << 20;

int threads_for(int64_t bytes, int asked) {
  return static_cast<int>(
      std::clamp<int64_t>(bytes / kBytesPerThread, 1, thread_count(asked)));
}

// Has the system clear the large pages of a new array, whose contents do not matter yet. Linux does
// so toward the byte that is touched first: from the last one it goes forward, which takes 2.1 ms
// for 64 MB where backward takes 5.3 ms.
void clear_large_pages(void* fresh, int64_t bytes, int threads) {
  constexpr int64_t kPage = int64_t{2} << 20;
  char* memory = static_cast<char*>(fresh);
  const auto beyond = static_cast<int64_t>(reinterpret_cast<uintptr_t>(memory) % kPage);
  const int64_t before = beyond ? kPage - beyond : 0;
  const int64_t pages = (bytes - before) / kPage;
  parallel_for(std::max<int64_t>(pages, 0), threads, [&](int64_t page, int) {
    memory[before + (page + 1) * kPage - 1] = 0;
  });
}

}  // namespace

float quantize_weight(const Array& weight, QuantizeJob job, const float* codebook, int threads) {
  std::vector<int64_t> offsets;
  job.weight = as_matrix(weight, offsets);
  job.type = float_type(weight.dtype);
  const ConversionTable& conversions = active_conversions();
  const int64_t panels = (job.cols + kPanel - 1) / kPanel;
  const int wanted = threads_for(job.cols * job.depth * 4, threads);
  // In the floating-point environment of the contract, which jobs have.
  Nearest nearest;
  if (codebook) {
    parallel_for(1, 1, [&](int64_t, int) { nearest = nearest_entries(codebook); });
    job.nearest = &nearest;
  }
  job.tensor_scale = 1;
  if (job.scale_type == ScaleType::e4m3) {
    std::atomic<int32_t> most{0};
    parallel_for(panels, wanted, [&](int64_t panel, int) {
      const int32_t bits = conversions.greatest_bits(job, panel);
      int32_t seen = most.load(std::memory_order_relaxed);
      while (bits > seen &&
             !most.compare_exchange_weak(seen, bits, std::memory_order_relaxed)) {
      }
    });
    parallel_for(1, 1, [&](int64_t, int) { job.tensor_scale = e4m3_tensor_scale(most.load()); });
  }
  const size_t bytes = aligned(conversions.quantize_scratch(job.depth_padded));
  Scratch scratch;
  char* memory = scratch.get<char>(bytes * static_cast<size_t>(wanted));
  std::atomic<int> worst{0};
  parallel_for(panels, wanted, [&](int64_t panel, int thread) {
    const int result = static_cast<int>(
        conversions.quantize(job, panel, memory + bytes * static_cast<size_t>(thread)));
    int seen = worst.load(std::memory_order_relaxed);
    // NaN and infinity are the complaint to make, whichever panel came first.
    while (result != 0 && (seen == 0 || result < seen) &&
           !worst.compare_exchange_weak(seen, result, std::memory_order_relaxed)) {
    }
  });
  switch (static_cast<QuantizeResult>(worst.load())) {
    case QuantizeResult::not_finite:
      throw std::invalid_argument("weight has NaN or infinite values, which cannot be quantized");
    case QuantizeResult::overflow:
      throw std::invalid_argument(
          "a scale of this weight is too large for its stored type; use scale_dtype=\"float32\"");
    default: return job.tensor_scale;
  }
}

bool pack_codes(const Array& codes, PackJob job, int threads) {
  std::vector<int64_t> offsets;
  job.codes = as_matrix(codes, offsets);
  const ConversionTable& conversions = active_conversions();
  const int64_t panels = (job.cols + kPanel - 1) / kPanel;
  const int wanted = threads_for(job.cols * job.depth, threads);
  const int64_t bits = panels * kPanel * job.depth_padded * job.bits;
  job.past_caches = job.cols * job.depth + bits / 8 >= kPastCaches;  // read and written
  int widths[kMaxSlices];
  for (int s = 0, slices = slice_widths(job.bits, widths); s < slices; ++s) {
    const int64_t rows = panels * plane_rows(job.depth_padded, widths[s]);
    clear_large_pages(job.planes[s], rows * kRowBytes, wanted);
  }
  std::atomic<bool> fits{true};
  parallel_for(panels, wanted, [&](int64_t panel, int) {
    if (!conversions.pack(job, panel)) fits.store(false, std::memory_order_relaxed);
  });
  return fits.load();
}

void unpack_codes(const Weight& w, const Array& codes, int add, int threads) {
  std::vector<int64_t> offsets;
  const UnpackJob job = {&w, as_matrix(codes, offsets), add, w.cols * w.depth >= kPastCaches};
  const ConversionTable& conversions = active_conversions();
  const int wanted = threads_for(w.cols * w.depth, threads);
  clear_large_pages(codes.data, w.cols * w.depth, wanted);
  parallel_for(w.panels, wanted, [&](int64_t panel, int) { conversions.unpack(job, panel); });
}

void dequantize(const Weight& w, const Array& out, bool is_fresh, int threads) {
  std::vector<int64_t> offsets;
  const int64_t bytes = w.cols * w.depth * item_bytes(out.dtype);
  const DequantizeJob job = {&w, as_matrix(out, offsets), float_type(out.dtype),
                             bytes >= kPastCaches};
  const ConversionTable& conversions = active_conversions();
  const int wanted = threads_for(w.cols * w.depth * 4, threads);
  if (is_fresh) clear_large_pages(out.data, bytes, wanted);
  parallel_for(w.panels, wanted, [&](int64_t panel, int) { conversions.dequantize(job, panel); });
}

namespace {

// Sixteen rows of a packed weight, gathered as a panel of their own.
class GatheredPanel {
 public:
  static size_t bytes(const Weight& w) {
    Weight view = w;
    size_t total = 0;
    for_each_plane(view, [&](auto&, int64_t rows, int64_t size) {
      total += static_cast<size_t>(rows * kPanel * size);
    });
    return aligned(total);
  }

  GatheredPanel(const Weight& w, const int64_t* indices, int64_t count, char* memory) : view_(w) {
    view_.cols = count;
    view_.panels = 1;
    for_each_plane(view_, [&](auto& plane, int64_t rows, int64_t size) {
      char* to = memory;
      memory = gather(plane, rows, size, indices, count, to);
      plane = reinterpret_cast<std::remove_reference_t<decltype(plane)>>(to);
    });
  }
  const Weight& view() const { return view_; }

 private:
  // f(plane, rows, bytes of an element) for each plane [panels, rows, 16] there is.
  template <class F>
  static void for_each_plane(Weight& w, const F& f) {
    for (int s = 0; s < w.slices; ++s) {
      f(w.slice[s].data, plane_rows(w.depth_padded, w.slice[s].bits), 4);
    }
    f(w.scales, w.groups, scale_bytes(w.scale_type));
    if (w.mins) f(w.mins, w.groups, scale_bytes(w.min_type));
    if (w.zero_points) f(w.zero_points, zero_rows(w), 1);
    if (w.super_scales) f(w.super_scales, w.supers, 2);
    if (w.super_mins) f(w.super_mins, w.supers, 2);
  }

  // Elements [index / 16, row, index % 16] of a plane [panels, rows, 16] to [row, i].
  static char* gather(const void* plane, int64_t rows, int64_t size, const int64_t* indices,
                      int64_t count, char* to) {
    std::memset(to, 0, static_cast<size_t>(rows * kPanel * size));
    for (int64_t i = 0; i < count; ++i) {
      const int64_t n = indices[i];
      const char* from = static_cast<const char*>(plane) +
                         (n / kPanel * rows * kPanel + n % kPanel) * size;
      for (int64_t row = 0; row < rows; ++row) {
        std::memcpy(to + (row * kPanel + i) * size, from + row * kPanel * size,
                    static_cast<size_t>(size));
      }
    }
    return to + rows * kPanel * size;
  }

  Weight view_;
};

}  // namespace

void take(const Weight& w, const int64_t* indices, int64_t count, const Array& out, int threads) {
  for (int64_t i = 0; i < count; ++i) {
    if (indices[i] < 0 || indices[i] >= w.cols) {
      throw std::invalid_argument("index " + std::to_string(indices[i]) +
                                  " is out of range for a weight of " + std::to_string(w.cols) +
                                  " rows");
    }
  }
  std::vector<int64_t> offsets;
  const Matrix matrix = as_matrix(out, offsets);
  const ConversionTable& conversions = active_conversions();
  const int wanted = threads_for(count * w.depth * 4, threads);
  const bool past_caches = count * w.depth * item_bytes(out.dtype) >= kPastCaches;
  const size_t bytes = GatheredPanel::bytes(w);
  Scratch scratch;
  char* memory = scratch.get<char>(bytes * static_cast<size_t>(wanted));
  parallel_for((count + kPanel - 1) / kPanel, wanted, [&](int64_t task, int thread) {
    const int64_t first = task * kPanel;
    const GatheredPanel panel(w, indices + first, std::min<int64_t>(kPanel, count - first),
                              memory + bytes * static_cast<size_t>(thread));
    DequantizeJob job = {&panel.view(), matrix, float_type(out.dtype), past_caches};
    skip_rows(job.out, first);
    conversions.dequantize(job, 0);
  });
}

void quantize_activations(const Array& x, int64_t group, const Array& codes, const Array& scales,
                          int threads) {
  const int64_t depth = x.last();
  const int64_t rows = row_count(x);
  const int64_t run = group ? group : std::max<int64_t>(depth, 1);
  const size_t groups = static_cast<size_t>(scales.last());
  std::vector<int64_t> x_offsets;
  const Matrix from = as_matrix(x, x_offsets);
  const FloatTable& floats = active_floats();
  const FloatType type = float_type(x.dtype);
  const int wanted = threads_for(rows * depth * 4, threads);
  const auto padded = static_cast<size_t>(round_up(depth, kPanel));
  const size_t bytes = aligned(padded * (sizeof(float) + 1));
  Scratch scratch;
  char* memory = scratch.get<char>(bytes * static_cast<size_t>(wanted));
  // Outputs are fresh arrays in C order.
  clear_large_pages(codes.data, rows * depth, wanted);
  // Elements of a task, unless a row has more: a us with AVX-512, beside which it costs nothing
  // to hand it out.
  constexpr int64_t kElementsPerTask = 4096;
  const int64_t rows_per_task =
      std::max<int64_t>(kElementsPerTask / std::max<int64_t>(depth, 1), 1);
  parallel_for((rows + rows_per_task - 1) / rows_per_task, wanted, [&](int64_t task, int thread) {
    char* own = memory + bytes * static_cast<size_t>(thread);
    const int64_t stop = std::min(rows, (task + 1) * rows_per_task);
    for (int64_t row = task * rows_per_task; row < stop; ++row) {
      float* row_scales = reinterpret_cast<float*>(scales.data) + row * scales.last();
      if (depth == 0) {  // the scale of nothing
        std::fill(row_scales, row_scales + groups, 0.0f);
        continue;
      }
      int8_t* row_codes = reinterpret_cast<int8_t*>(codes.data) + row * depth;
      floats.quantize_row(from, type, row, depth, run, own, row_codes, row_scales);
    }
  });
}

void activate(const float* x, float* y, int64_t count, Activation activation) {
  const FloatTable& floats = active_floats();
  parallel_for(1, 1, [&](int64_t, int) { floats.activate(x, y, count, activation); });
}

}  // namespace nibblas
