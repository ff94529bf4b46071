#pragma once
// Looks after the files of a [tls] table while a daemon runs: says in the log when the certificate nears its end (each
// day of the last 14), has expired, or was renewed, and when what it was renewed with cannot be used. It changes
// nothing: gRPC reads the files for itself. Owns a thread, which looks each second. Any thread may ask.

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <string>
#include <thread>

#include "pki/tls_files.h"

namespace godwit::controlplane {

class CertificateWatch {
 public:
  /// Says how things stand at once. `own` is whose certificate it is.
  CertificateWatch(pki::TlsFiles files, pki::Identity own);
  ~CertificateWatch();
  CertificateWatch(const CertificateWatch&) = delete;
  CertificateWatch& operator=(const CertificateWatch&) = delete;

  /// When the certificate that is in the file ends; 0 = it cannot be read.
  [[nodiscard]] std::int64_t end_unix_us() const { return end_unix_us_.load(); }

 private:
  void run();
  void look();
  void reload(bool first);

  const pki::TlsFiles files_;
  const pki::Identity own_;
  const std::string renewal_;  // the command that makes a new one

  // of run()'s thread (and of the constructor before it)
  std::string seen_;  // names, times and sizes of the files
  pki::Validity validity_;
  std::string said_;

  std::atomic<std::int64_t> end_unix_us_ = 0;
  std::mutex mutex_;
  std::condition_variable stop_;
  bool stopping_ = false;
  std::thread thread_;
};

}  // namespace godwit::controlplane
