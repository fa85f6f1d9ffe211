// A CUDA device for a build of torch without CUDA. Its memory is memory of the host, and its kernels
// are those of the CPU, on copies of the arguments (`at::native::cpu_fallback`). Tensors on it are
// real tensors of the device type `cuda`: operators reject tensors of two devices, and composite
// operators take the branches of CUDA.
//
// The library counts kernels, copies and waits, limits the memory, and can lose the device.

#include <ATen/ATen.h>
#include <ATen/EmptyTensor.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <ATen/native/CPUFallback.h>
#include <ATen/native/DispatchStub.h>
#include <ATen/native/transformers/attention.h>
#include <ATen/native/transformers/sdp_utils_cpp.h>
#include <ATen/ops/_reshape_alias_native.h>
#include <ATen/ops/as_strided_native.h>
#include <ATen/ops/set_native.h>
#include <ATen/ops/unfold_native.h>
#include <ATen/ops/view_as_complex_native.h>
#include <ATen/ops/view_as_real_native.h>
#include <ATen/ops/view_native.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <torch/library.h>

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <set>
#include <string>
#include <vector>

namespace {

const c10::Device kDevice(c10::DeviceType::CUDA, 0);
constexpr size_t kAlignment = 512;  // as torch's allocator on CUDA

struct Counts {
  std::atomic<int64_t> kernels{0}, waits{0}, copies_to_device{0}, copies_to_host{0};
  std::atomic<int64_t> allocated{0}, peak{0};
} counts;
std::atomic<int64_t> memory_limit{0};
std::atomic<int64_t> kernels_until_loss{-1};  // negative: the device is not lost
std::mutex mutex;  // guards what follows
std::map<std::string, int64_t> operators;
std::map<const char*, size_t> pinned_blocks;  // sizes by address

thread_local bool is_inside_kernel = false;  // copies by a kernel are not counted

struct InsideKernel {
  bool before = is_inside_kernel;
  InsideKernel() { is_inside_kernel = true; }
  ~InsideKernel() { is_inside_kernel = before; }
};

// ---------------------------------------------------------------------------------------- memory

struct Block {
  void* data;
  int64_t size;
};

void free_block(void* context) {
  auto* block = static_cast<Block*>(context);
  counts.allocated -= block->size;
  std::free(block->data);
  delete block;
}

struct DeviceAllocator final : c10::Allocator {
  c10::DataPtr allocate(size_t n) override {
    if (n == 0) return {nullptr, nullptr, [](void*) {}, kDevice};
    const auto size = static_cast<int64_t>((n + kAlignment - 1) / kAlignment * kAlignment);
    const bool fits = memory_limit == 0 || counts.allocated + size <= memory_limit;
    void* data = fits ? std::aligned_alloc(kAlignment, size) : nullptr;
    TORCH_CHECK_WITH(OutOfMemoryError, data != nullptr,
                     "CUDA out of memory. Tried to allocate ", n, " bytes (simulated).");
    counts.allocated += size;
    counts.peak = std::max<int64_t>(counts.peak, counts.allocated);
    return {data, new Block{data, size}, &free_block, kDevice};
  }
  c10::DeleterFnPtr raw_deleter() const override { return nullptr; }
  void copy_data(void* to, const void* from, size_t n) const override { std::memcpy(to, from, n); }
} device_allocator;

void free_pinned(void* data) {
  std::lock_guard lock(mutex);
  pinned_blocks.erase(static_cast<const char*>(data));
  std::free(data);
}

struct PinnedAllocator final : c10::Allocator {
  c10::DataPtr allocate(size_t n) override {
    if (n == 0) return {nullptr, nullptr, [](void*) {}, c10::kCPU};
    void* data = std::malloc(n);
    std::lock_guard lock(mutex);
    pinned_blocks[static_cast<const char*>(data)] = n;
    return {data, data, &free_pinned, c10::kCPU};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &free_pinned; }
  void copy_data(void* to, const void* from, size_t n) const override { std::memcpy(to, from, n); }
} pinned_allocator;

bool is_pinned(const void* data) {
  const auto* address = static_cast<const char*>(data);
  std::lock_guard lock(mutex);
  auto after = pinned_blocks.upper_bound(address);
  if (after == pinned_blocks.begin()) return false;
  const auto& [start, size] = *std::prev(after);
  return address < start + size;
}

at::Tensor empty_strided(c10::IntArrayRef size, c10::IntArrayRef stride,
                         std::optional<at::ScalarType> dtype, std::optional<at::Layout>,
                         std::optional<at::Device>, std::optional<bool>) {
  return at::detail::empty_strided_generic(size, stride, &device_allocator,
                                           c10::DispatchKeySet(c10::DispatchKey::CUDA),
                                           c10::dtype_or_default(dtype));
}

at::Tensor empty(c10::IntArrayRef size, std::optional<at::ScalarType> dtype,
                 std::optional<at::Layout>, std::optional<at::Device>, std::optional<bool> pin,
                 std::optional<at::MemoryFormat> format) {
  TORCH_CHECK(!pin.value_or(false), "Only dense CPU tensors can be pinned");
  return at::detail::empty_generic(size, &device_allocator,
                                   c10::DispatchKeySet(c10::DispatchKey::CUDA),
                                   c10::dtype_or_default(dtype), format);
}

const at::Tensor& resize_(const at::Tensor& self, c10::IntArrayRef size,
                          std::optional<at::MemoryFormat>) {
  if (self.sizes() == size) return self;  // its strides stay
  auto storage = self.storage();
  const size_t needed =
      (self.storage_offset() + c10::multiply_integers(size)) * self.dtype().itemsize();
  if (needed > storage.nbytes()) {
    auto data = device_allocator.allocate(needed);
    if (storage.nbytes()) std::memcpy(data.get(), storage.data(), storage.nbytes());
    storage.set_data_ptr_noswap(std::move(data));
    storage.set_nbytes(needed);
  }
  self.unsafeGetTensorImpl()->set_sizes_contiguous(size);
  return self;
}

at::Tensor& set_source(at::Tensor& self, at::Storage source, int64_t offset,
                       c10::IntArrayRef size, c10::IntArrayRef stride) {
  self.unsafeGetTensorImpl()->set_storage_keep_dtype(std::move(source));
  self.unsafeGetTensorImpl()->set_sizes_and_strides(size, stride, offset);
  return self;
}

at::Tensor& set_whole_source(at::Tensor& self, at::Storage source) {
  const auto n = static_cast<int64_t>(source.nbytes() / self.dtype().itemsize());
  return set_source(self, std::move(source), 0, {n}, {1});
}

// -------------------------------------------------------------------- kernels, waits and the loss

void begin_kernel(const std::string& name) {
  if (is_inside_kernel) return;
  if (kernels_until_loss == 0) {
    throw c10::AcceleratorError({__func__, __FILE__, static_cast<uint32_t>(__LINE__)}, 700,
                                "CUDA error: an illegal memory access was encountered (simulated)");
  }
  if (kernels_until_loss > 0) kernels_until_loss--;
  counts.kernels++;
  std::lock_guard lock(mutex);
  operators[name]++;
}

// Copies that a program may not assume to be complete before it waits.
struct LateCopy {
  at::Tensor from, to;
};
std::vector<LateCopy> late_reads;   // `to` is pinned memory, and gets the values at the next wait
std::vector<LateCopy> late_writes;  // `from` is pinned memory, and must equal `to` until then

void wait() {
  if (is_inside_kernel) return;
  counts.waits++;
  std::vector<LateCopy> reads, writes;
  {
    std::lock_guard lock(mutex);
    reads.swap(late_reads);
    writes.swap(late_writes);
  }
  for (auto& [from, to] : reads) to.copy_(from);
  for (auto& [from, to] : writes) {
    TORCH_CHECK(std::memcmp(from.data_ptr(), to.data_ptr(), from.nbytes()) == 0,
                "Pinned memory was changed before its copy to the device was complete");
  }
}

at::Tensor on_host(const at::Tensor& t) {
  if (!t.is_cuda()) return t;
  return at::from_blob(t.data_ptr(), t.sizes(), t.strides(), t.options().device(c10::kCPU));
}

at::Tensor copy_from(const at::Tensor& from, const at::Tensor& to, bool non_blocking) {
  if (is_inside_kernel || (from.is_cuda() && to.is_cuda())) {
    begin_kernel("aten::copy_");
    on_host(to).copy_(on_host(from));
    return to;
  }
  begin_kernel(to.is_cuda() ? "copy to device" : "copy to host");
  counts.kernels--;
  (to.is_cuda() ? counts.copies_to_device : counts.copies_to_host)++;
  const bool is_late = non_blocking && is_pinned(to.is_cuda() ? from.data_ptr() : to.data_ptr());
  if (!is_late) {
    wait();
    on_host(to).copy_(on_host(from));
  } else if (to.is_cuda()) {
    on_host(to).copy_(from);
    if (from.is_contiguous()) {
      std::lock_guard lock(mutex);
      late_writes.push_back({from, from.clone()});
    }
  } else {
    auto values = on_host(from).clone();
    std::lock_guard lock(mutex);
    late_reads.push_back({values, to});
  }
  return to;
}

at::Tensor& copy_(at::Tensor& self, const at::Tensor& source, bool non_blocking) {
  copy_from(source.expand(self.sizes()), self, non_blocking);
  return self;
}

at::Tensor copy_from_and_resize(const at::Tensor& from, const at::Tensor& to) {
  resize_(to, from.sizes(), std::nullopt);
  return copy_from(from, to, false);
}

at::Scalar local_scalar_dense(const at::Tensor& self) {
  begin_kernel("aten::_local_scalar_dense");
  counts.kernels--;
  counts.copies_to_host++;
  wait();
  return on_host(self).item();
}

// Operators that wait, because the device decides the size of their result.
const std::set<std::string> waiting_operators = {
    "aten::equal",         "aten::is_nonzero", "aten::masked_select",     "aten::nonzero",
    "aten::nonzero_numpy", "aten::_unique2",   "aten::unique_consecutive"};

// Operators that copy indices of the host to the device.
bool takes_indices_of_host(const std::string& name) {
  return name == "aten::index" || name == "aten::index_put_" || name == "aten::_index_put_impl_";
}

void check_device(const at::Tensor& t, const std::string& name, const std::string& argument) {
  if (!t.defined() || t.is_cuda() || t.dim() == 0) return;  // scalars may be on the CPU
  if (argument == "indices" && takes_indices_of_host(name)) {
    counts.copies_to_device++;
    wait();
    return;
  }
  TORCH_CHECK(false, "Expected all tensors to be on the same device, but got ", argument, " on ",
              t.device(), ", different from other tensors on cuda:0 (when checking argument in ",
              name, ")");
}

void run_on_cpu(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  const auto& schema = op.schema();
  const auto& name = schema.name();
  begin_kernel(name);
  for (size_t i = 0; i < schema.arguments().size(); i++) {
    const auto& value = (*stack)[stack->size() - schema.arguments().size() + i];
    const auto& argument = schema.arguments()[i].name();
    if (value.isTensor()) {
      check_device(value.toTensor(), name, argument);
    } else if (value.isTensorList()) {
      for (const at::Tensor& t : value.toTensorList()) check_device(t, name, argument);
    } else if (value.isOptionalTensorList()) {
      for (const std::optional<at::Tensor>& t : value.toOptionalTensorList()) {
        if (!t.has_value()) continue;
        check_device(*t, name, argument);
        // The number of ones of a mask is read. torch computes it for `index` by `nonzero`.
        if (t->scalar_type() == at::kBool && name != "aten::index") wait();
      }
    }
  }
  if (waiting_operators.count(name)) wait();
  InsideKernel inside;
  at::native::cpu_fallback(op, stack, /*error_on_views=*/true);
}

// ------------------------------------------------------------- operators that differ from the CPU

at::Tensor softmax(const at::Tensor& self, int64_t dim, bool half_to_float) {
  begin_kernel("aten::_softmax");
  InsideKernel inside;
  auto values = on_host(self);
  return at::_softmax(half_to_float ? values.to(at::kFloat) : values, dim, false).to(kDevice);
}

// One kernel on CUDA; torch's implementation for CPUs is composed of several.
std::tuple<at::Tensor, at::Tensor> fused_rms_norm(const at::Tensor& x, c10::IntArrayRef shape,
                                                  const std::optional<at::Tensor>& weight,
                                                  std::optional<double> eps) {
  begin_kernel("aten::_fused_rms_norm");
  if (weight.has_value()) check_device(*weight, "aten::_fused_rms_norm", "weight");
  InsideKernel inside;
  const auto scale = weight.has_value() ? std::optional(on_host(*weight)) : std::nullopt;
  return {at::rms_norm(on_host(x), shape, scale, eps).to(kDevice), at::empty({0}).to(kDevice)};
}

// The CPU's does not support integers.
at::Tensor histc(const at::Tensor& self, int64_t bins, const at::Scalar& min,
                 const at::Scalar& max) {
  begin_kernel("aten::histc");
  InsideKernel inside;
  auto found = at::histc(on_host(self).to(at::kFloat), bins, min, max);
  return found.to(self.scalar_type()).to(kDevice);
}

int64_t choose_attention(const at::Tensor&, const at::Tensor&, const at::Tensor&,
                         const std::optional<at::Tensor>&, double, bool, std::optional<double>,
                         bool) {
  return static_cast<int64_t>(sdp::SDPBackend::math);
}

at::Tensor as_strided(const at::Tensor& self, c10::IntArrayRef size, c10::IntArrayRef stride,
                      std::optional<int64_t> offset) {
  return at::native::as_strided_tensorimpl(self, size, stride, offset);
}

TORCH_LIBRARY_IMPL(aten, CUDA, m) {
  m.impl("empty.memory_format", &empty);
  m.impl("empty_strided", &empty_strided);
  m.impl("resize_", &resize_);
  m.impl("set_.source_Storage", &set_whole_source);
  m.impl("set_.source_Storage_storage_offset", &set_source);
  m.impl("copy_", &copy_);
  m.impl("_copy_from", &copy_from);
  m.impl("_copy_from_and_resize", &copy_from_and_resize);
  m.impl("_local_scalar_dense", &local_scalar_dense);
  m.impl("as_strided", &as_strided);
  m.impl("view", TORCH_FN(at::native::view));
  m.impl("_reshape_alias", TORCH_FN(at::native::_reshape_alias));
  m.impl("unfold", TORCH_FN(at::native::unfold));
  m.impl("view_as_real", TORCH_FN(at::native::view_as_real));
  m.impl("view_as_complex", TORCH_FN(at::native::view_as_complex));
  m.impl("_softmax", &softmax);
  m.impl("_fused_rms_norm", &fused_rms_norm);
  m.impl("histc", &histc);
}

TORCH_LIBRARY_IMPL(_, CUDA, m) {
  m.fallback(torch::CppFunction::makeFromBoxedFunction<&run_on_cpu>());
}

// -------------------------------------------------------------------------------- the device

struct Guard final : c10::impl::DeviceGuardImplInterface {
  c10::DeviceType type() const override { return kDevice.type(); }
  c10::Device exchangeDevice(c10::Device) const override { return kDevice; }
  c10::Device getDevice() const override { return kDevice; }
  void setDevice(c10::Device d) const override {
    TORCH_CHECK(d.index() <= 0, "CUDA error: invalid device ordinal");
  }
  void uncheckedSetDevice(c10::Device) const noexcept override {}
  c10::Stream getStream(c10::Device) const noexcept override { return stream(); }
  c10::Stream getNewStream(c10::Device, int) const override { return stream(); }
  c10::Stream exchangeStream(c10::Stream) const noexcept override { return stream(); }
  c10::DeviceIndex deviceCount() const noexcept override { return 1; }
  void synchronizeStream(const c10::Stream&) const override { wait(); }
  void synchronizeDevice(const c10::DeviceIndex) const override { wait(); }

 private:
  static c10::Stream stream() noexcept { return c10::Stream(c10::Stream::DEFAULT, kDevice); }
};
C10_REGISTER_GUARD_IMPL(CUDA, Guard)

struct CUDAHooks final : at::CUDAHooksInterface {
  explicit CUDAHooks(at::CUDAHooksArgs) {}
  void init() const override {}
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasCUDA() const override { return true; }
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
  int getNumGPUs() const override { return 1; }
  c10::DeviceIndex deviceCount() const override { return 1; }
  c10::DeviceIndex current_device() const override { return 0; }
  c10::DeviceIndex getCurrentDevice() const override { return 0; }
  bool isPinnedPtr(const void* data) const override { return is_pinned(data); }
  c10::Allocator* getPinnedMemoryAllocator() const override { return &pinned_allocator; }
  void deviceSynchronize(c10::DeviceIndex) const override { wait(); }
};

}  // namespace

namespace at {
C10_REGISTER_CLASS(CUDAHooksRegistry, CUDAHooks, CUDAHooks)
}

// ------------------------------------------------------------------------ the interface for Python

extern "C" {

void simulated_cuda_install() {
  c10::SetAllocator(kDevice.type(), &device_allocator);
  at::native::_fused_sdp_choice_stub.set_cuda_dispatch_ptr(&choose_attention);
}

// Writes kernels, waits, copies to the device, copies to the host, allocated bytes, peak bytes.
void simulated_cuda_counts(int64_t* out) {
  out[0] = counts.kernels;
  out[1] = counts.waits;
  out[2] = counts.copies_to_device;
  out[3] = counts.copies_to_host;
  out[4] = counts.allocated;
  out[5] = counts.peak;
}

// Returns a line "NAME NUMBER" for each operator. It is valid until the next call.
const char* simulated_cuda_operators() {
  static std::string text;
  std::lock_guard lock(mutex);
  text.clear();
  for (const auto& [name, n] : operators) text += name + " " + std::to_string(n) + "\n";
  return text.c_str();
}

void simulated_cuda_reset_peak() { counts.peak = counts.allocated.load(); }

void simulated_cuda_synchronize() { wait(); }

void simulated_cuda_limit_memory(int64_t bytes) { memory_limit = bytes; }

void simulated_cuda_lose_after(int64_t kernels) { kernels_until_loss = kernels; }
}
