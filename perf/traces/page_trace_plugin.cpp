// The pages that a program touches, as a trace of windows: a plugin of QEMU's user-mode emulation, built by record.py.
// So many accesses make a window: the pages that were touched in it, each once, in the order of their first touch. So
// order is kept to a window, which is far shorter than a scan period and touches far fewer pages than a cache has. An
// access is a load, a store, or a block of code that runs.
//
// Format: per window a count, then so many pages, each as the difference from the page before it, zigzag. All are
// LEB128. Pages are numbered in the order of their first appearance. The program ends after so many windows.

#include <unistd.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <unordered_map>
#include <vector>

// QEMU's plugin API, version 1 (QEMU 7.2, docs/devel/tcg-plugins.rst); Debian has no header of it.
extern "C" {
struct qemu_plugin_tb;
struct qemu_plugin_insn;
using Id = std::uint64_t;
using OnTranslation = void (*)(Id, qemu_plugin_tb*);
using OnBlock = void (*)(unsigned, void*);
using OnAccess = void (*)(unsigned, std::uint32_t, std::uint64_t, void*);
void qemu_plugin_register_vcpu_tb_trans_cb(Id, OnTranslation);
void qemu_plugin_register_vcpu_tb_exec_cb(qemu_plugin_tb*, OnBlock, int flags, void*);
void qemu_plugin_register_vcpu_mem_cb(qemu_plugin_insn*, OnAccess, int flags, int access, void*);
std::size_t qemu_plugin_tb_n_insns(const qemu_plugin_tb*);
std::uint64_t qemu_plugin_tb_vaddr(const qemu_plugin_tb*);
qemu_plugin_insn* qemu_plugin_tb_get_insn(const qemu_plugin_tb*, std::size_t);
[[gnu::visibility("default")]] extern int qemu_plugin_version;
int qemu_plugin_version = 1;
}

namespace {

constexpr int kNoRegisters = 0, kLoadsAndStores = 3;

class Windows {
 public:
  void begin(const char* path, std::uint64_t window_accesses, std::uint64_t windows) {
    out_ = std::fopen(path, "wb");
    window_accesses_ = window_accesses;
    windows_ = windows;
  }
  void touch(std::uint64_t address) {
    const std::scoped_lock lock(mutex_);
    if (const std::uint64_t page = address >> 12; page != last_) {
      last_ = page;
      add(page);
    }
    if (++accesses_ == window_accesses_) {
      end();
    }
  }

 private:
  void add(std::uint64_t page) {
    const auto [known, is_new] = numbers_.try_emplace(page, numbers_.size());
    if (is_new) {
      seen_.push_back(0);
    }
    if (seen_[known->second] != window_) {
      seen_[known->second] = window_;
      pages_.push_back(known->second);
    }
  }
  void put(std::uint64_t value) {
    for (; value >= 128; value >>= 7) {
      std::fputc(static_cast<int>(value & 127) | 128, out_);
    }
    std::fputc(static_cast<int>(value), out_);
  }
  void end() {
    put(pages_.size());
    for (const std::uint64_t page : pages_) {
      const auto difference = static_cast<std::int64_t>(page - before_);
      put(static_cast<std::uint64_t>(difference << 1) ^ static_cast<std::uint64_t>(difference >> 63));
      before_ = page;
    }
    std::fflush(out_);
    pages_.clear();
    accesses_ = 0;
    last_ = UINT64_MAX;
    if (window_++ == windows_) {
      _exit(0);
    }
  }

  std::mutex mutex_;
  std::FILE* out_ = nullptr;
  std::unordered_map<std::uint64_t, std::uint64_t> numbers_;
  std::vector<std::uint64_t> seen_;  // the last window that has it
  std::vector<std::uint64_t> pages_;
  std::uint64_t window_accesses_ = 0, windows_ = 0, accesses_ = 0, window_ = 1, before_ = 0, last_ = UINT64_MAX;
};

Windows trace;

void on_block(unsigned /*vcpu*/, void* address) { trace.touch(reinterpret_cast<std::uint64_t>(address)); }
void on_access(unsigned /*vcpu*/, std::uint32_t /*info*/, std::uint64_t address, void* /*user*/) {
  trace.touch(address);
}
void on_translation(Id /*id*/, qemu_plugin_tb* block) {
  qemu_plugin_register_vcpu_tb_exec_cb(block, on_block, kNoRegisters,
                                       reinterpret_cast<void*>(qemu_plugin_tb_vaddr(block)));
  for (std::size_t i = 0; i < qemu_plugin_tb_n_insns(block); ++i) {
    qemu_plugin_register_vcpu_mem_cb(qemu_plugin_tb_get_insn(block, i), on_access, kNoRegisters, kLoadsAndStores,
                                     nullptr);
  }
}

}  // namespace

/// file=PATH window=ACCESSES windows=COUNT, in this order.
extern "C" int qemu_plugin_install(Id id, const void* /*info*/, int argc, char** argv) {
  if (argc != 3) {
    return 1;
  }
  const auto value = [&](int i) { return std::strchr(argv[i], '=') + 1; };
  trace.begin(value(0), std::strtoull(value(1), nullptr, 10), std::strtoull(value(2), nullptr, 10));
  qemu_plugin_register_vcpu_tb_trans_cb(id, on_translation);
  return 0;
}
