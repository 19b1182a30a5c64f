// 假的 CUDA 设备：张量说自己在 cuda:0，内存在主机上，每个算子由 CPU 的实现来算。
// 分配器像真的那样以 512 字节为单位记账，超过 limit 就抛 OutOfMemoryError。

#include <ATen/ATen.h>
#include <ATen/EmptyTensor.h>
#include <ATen/native/CPUFallback.h>
#include <c10/core/Allocator.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <torch/library.h>

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <limits>

namespace at::native { // 头文件按算子分开放，这里只要几个
Tensor view(const Tensor&, IntArrayRef);
Tensor as_strided_tensorimpl(const Tensor&, IntArrayRef, IntArrayRef, std::optional<int64_t>);
Tensor _reshape_alias(const Tensor&, IntArrayRef, IntArrayRef);
Tensor unfold(const Tensor&, int64_t, int64_t, int64_t);
} // namespace at::native

namespace {

using namespace at;

const Device CARD(DeviceType::CUDA, 0);

struct Guard final : public c10::impl::DeviceGuardImplInterface {
  DeviceType type() const override { return DeviceType::CUDA; }
  Device exchangeDevice(Device) const override { return CARD; }
  Device getDevice() const override { return CARD; }
  void setDevice(Device) const override {}
  void uncheckedSetDevice(Device) const noexcept override {}
  Stream getStream(Device device) const override { return Stream(Stream::DEFAULT, device); }
  Stream getDefaultStream(Device device) const override { return getStream(device); }
  Stream getNewStream(Device device, int) const override { return getStream(device); }
  Stream exchangeStream(Stream) const override { return getStream(CARD); }
  DeviceIndex deviceCount() const noexcept override { return 1; }
  void record(void**, const Stream&, const DeviceIndex, const EventFlag) const override {}
  void block(void*, const Stream&) const override {}
  bool queryEvent(void*) const override { return true; }
  void destroyEvent(void*, const DeviceIndex) const noexcept override {}
  bool queryStream(const Stream&) const override { return true; }
  void synchronizeStream(const Stream&) const override {}
};

Guard guard;
c10::impl::DeviceGuardImplRegistrar registrar(DeviceType::CUDA, &guard);

// ── 分配器 ────────────────────────────────────────────────────────────

constexpr size_t UNIT = 512, HEAD = 64; // 块的前面留 HEAD 字节记它多大
std::atomic<int64_t> live{0}, peak{0}, limit{std::numeric_limits<int64_t>::max()};

void release(void* data) {
  if (data == nullptr) return;
  auto* head = reinterpret_cast<size_t*>(static_cast<char*>(data) - HEAD);
  live -= static_cast<int64_t>(*head);
  free(head);
}

struct Allocator final : public c10::Allocator {
  DataPtr allocate(size_t bytes) override {
    if (bytes == 0) return {nullptr, nullptr, &release, CARD};
    const size_t size = (bytes + UNIT - 1) / UNIT * UNIT;
    const int64_t now = live += static_cast<int64_t>(size);
    if (now > limit) {
      live -= static_cast<int64_t>(size);
      TORCH_CHECK_WITH(OutOfMemoryError, false, "CUDA out of memory. Tried to allocate ", size, " bytes (fake)");
    }
    for (int64_t most = peak; now > most && !peak.compare_exchange_weak(most, now);) {
    }
    auto* head = static_cast<size_t*>(aligned_alloc(HEAD, size + HEAD));
    *head = size;
    void* data = reinterpret_cast<char*>(head) + HEAD;
    return {data, data, &release, CARD};
  }
  DeleterFnPtr raw_deleter() const override { return &release; }
  void copy_data(void* target, const void* source, size_t bytes) const override {
    memcpy(target, source, bytes);
  }
};

Allocator allocator;
constexpr DispatchKeySet KEYS(DispatchKey::CUDA);

// ── 算子：造、搬、看；其余都回到 CPU ──────────────────────────────────

Tensor new_empty(
    SymIntArrayRef size, std::optional<ScalarType> dtype, std::optional<Layout>,
    std::optional<Device>, std::optional<bool>, std::optional<MemoryFormat> format) {
  return at::detail::empty_generic_symint(size, &allocator, KEYS, dtype.value_or(kFloat), format);
}

Tensor new_strided(
    SymIntArrayRef size, SymIntArrayRef stride, std::optional<ScalarType> dtype,
    std::optional<Layout>, std::optional<Device>, std::optional<bool>) {
  return at::detail::empty_strided_symint_generic(size, stride, &allocator, KEYS, dtype.value_or(kFloat));
}

Tensor on_host(const Tensor& x) {
  if (!x.is_cuda()) return x;
  auto options = x.options().device(kCPU);
  return at::from_blob(const_cast<void*>(x.data_ptr()), x.sizes(), x.strides(), options);
}

std::atomic<int64_t> to_card{0}, to_host{0}; // 真的显卡上要搬数据的次数；to_host 的每次都等设备
thread_local int borrowed = 0; // 大于 0：算子借 CPU 来算时的搬运，不算数

void note_copy(bool from_card, bool onto_card) {
  if (borrowed > 0 || from_card == onto_card) return;
  ++(onto_card ? to_card : to_host);
}

Tensor& copy_into(Tensor& target, const Tensor& source, bool) {
  note_copy(source.is_cuda(), target.is_cuda());
  if (target.numel() != 0) on_host(target).copy_(on_host(source));
  return target;
}

Tensor copy_from(const Tensor& source, const Tensor& target, bool) {
  Tensor out = target;
  copy_into(out, source, false);
  return target;
}

Tensor copy_from_and_resize(const Tensor& source, const Tensor& target) {
  Tensor out = target;
  out.resize_(source.sizes());
  copy_into(out, source, false);
  return target;
}

Scalar local_scalar(const Tensor& x) {
  note_copy(true, false);
  return on_host(x).item();
}

const Tensor& grow(const Tensor& x, SymIntArrayRef symbols, std::optional<MemoryFormat>) {
  const auto size = C10_AS_INTARRAYREF_SLOW(symbols);
  if (x.sizes() == size) return x; // 一样大就原样：视图的步幅不能丢
  const auto need = static_cast<size_t>(c10::multiply_integers(size) + x.storage_offset()) * x.element_size();
  const auto& storage = x.storage();
  if (storage.nbytes() < need) {
    auto data = allocator.allocate(need);
    if (storage.nbytes() != 0) memcpy(data.get(), storage.data(), storage.nbytes());
    storage.unsafeGetStorageImpl()->set_data_ptr_noswap(std::move(data));
    storage.unsafeGetStorageImpl()->set_nbytes(need);
  }
  x.unsafeGetTensorImpl()->set_sizes_contiguous(size);
  return x;
}

Tensor& set_storage(Tensor& x, Storage storage, int64_t offset, IntArrayRef size, IntArrayRef stride) {
  auto* inner = x.unsafeGetTensorImpl();
  inner->set_storage_keep_dtype(std::move(storage));
  inner->set_storage_offset(offset);
  if (stride.empty()) {
    inner->set_sizes_contiguous(size);
  } else {
    inner->set_sizes_and_strides(size, stride);
  }
  return x;
}

// 融合的归一化只有 CUDA 的核，CPU 上没有；这里是它的数学，只按最后一维

Tensor onto_card(const Tensor& x) {
  Tensor out = at::empty(x.sizes(), x.options().device(CARD));
  on_host(out).copy_(x);
  return out;
}

std::tuple<Tensor, Tensor> fused_norm(
    const Tensor& x, IntArrayRef, const std::optional<Tensor>& weight, std::optional<double> eps) {
  const Tensor host = on_host(x);
  const Tensor inverse = host.square().mean(-1, true).add(eps.value_or(1e-6)).rsqrt();
  return {onto_card(host * inverse * on_host(*weight)), onto_card(inverse)};
}

std::tuple<Tensor, Tensor> fused_norm_backward(
    const Tensor& grad, const Tensor& x, IntArrayRef, const Tensor& inverse,
    const std::optional<Tensor>& weight, std::array<bool, 2>) {
  const Tensor unit = on_host(x) * on_host(inverse);
  const Tensor inner = on_host(grad) * on_host(*weight);
  const Tensor along = (inner * unit).mean(-1, true);
  const Tensor of_weight = (on_host(grad) * unit).reshape({-1, x.size(-1)}).sum(0);
  return {onto_card(on_host(inverse) * (inner - unit * along)), onto_card(of_weight)};
}

void on_cpu(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  struct Borrow {
    Borrow() { ++borrowed; }
    ~Borrow() { --borrowed; }
  } borrow;
  at::native::cpu_fallback(op, stack);
}

} // namespace

TORCH_LIBRARY_IMPL(_, CUDA, m) {
  m.fallback(torch::CppFunction::makeFromBoxedFunction<&on_cpu>());
}

TORCH_LIBRARY_IMPL(aten, CUDA, m) {
  m.impl("empty.memory_format", TORCH_FN(new_empty));
  m.impl("empty_strided", TORCH_FN(new_strided));
  m.impl("copy_", TORCH_FN(copy_into));
  m.impl("_copy_from", TORCH_FN(copy_from));
  m.impl("_copy_from_and_resize", TORCH_FN(copy_from_and_resize));
  m.impl("_local_scalar_dense", TORCH_FN(local_scalar));
  m.impl("resize_", TORCH_FN(grow));
  m.impl("set_.source_Storage_storage_offset", TORCH_FN(set_storage));
  m.impl("view", TORCH_FN(at::native::view));
  m.impl("as_strided", TORCH_FN(at::native::as_strided_tensorimpl));
  m.impl("_reshape_alias", TORCH_FN(at::native::_reshape_alias));
  m.impl("unfold", TORCH_FN(at::native::unfold));
  // 真的 CUDA 有一个核；没有登记的设备上它会拆成几个
  m.impl("silu_backward", torch::CppFunction::makeFromBoxedFunction<&on_cpu>());
  m.impl("_fused_rms_norm", TORCH_FN(fused_norm));
  m.impl("_fused_rms_norm_backward", TORCH_FN(fused_norm_backward));
}

extern "C" { // 由 ctypes 调用
int64_t fakecuda_live() { return live; }
int64_t fakecuda_peak() { return peak; }
int64_t fakecuda_to_card() { return to_card; }
int64_t fakecuda_to_host() { return to_host; }
void fakecuda_forget_peak() { peak = live.load(); }
void fakecuda_set_limit(int64_t bytes) { limit = bytes; }
}
