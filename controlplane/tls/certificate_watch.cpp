#include "controlplane/tls/certificate_watch.h"

#include <fmt/format.h>
#include <spdlog/spdlog.h>
#include <sys/stat.h>

#include "pki/directory.h"

namespace godwit::controlplane {
namespace {

constexpr std::chrono::seconds kInterval{1};

std::string fingerprint(const pki::TlsFiles& files) {
  std::string text;
  for (const auto& path : {files.ca, files.certificate, files.key}) {
    struct stat status {};
    if (::stat(path.c_str(), &status) == 0) {
      text += fmt::format("{}:{}.{}:{} ", status.st_ino, status.st_mtim.tv_sec, status.st_mtim.tv_nsec, status.st_size);
    }
  }
  return text;
}

}  // namespace

CertificateWatch::CertificateWatch(pki::TlsFiles files, pki::Identity own)
    : files_(std::move(files)), own_(std::move(own)), renewal_(pki::renewal_text(pki::name_of(own_))) {
  seen_ = fingerprint(files_);
  reload(true);
  look();
  thread_ = std::thread([this] { run(); });
}

CertificateWatch::~CertificateWatch() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  stop_.notify_all();
  thread_.join();
}

void CertificateWatch::run() {
  std::unique_lock lock(mutex_);
  while (!stop_.wait_for(lock, kInterval, [&] { return stopping_; })) {
    if (std::string now = fingerprint(files_); now != seen_) {
      seen_ = std::move(now);
      reload(false);
    }
    look();
  }
}

void CertificateWatch::reload(bool first) {
  for (const auto& mistake : pki::tls_mistakes(files_, own_)) {
    spdlog::warn("new connections may fail: {}", mistake.text);
  }
  const auto certificate = pki::load_certificate(files_.certificate);
  if (!certificate) {
    end_unix_us_ = 0;
    return;
  }
  validity_ = certificate->validity();
  end_unix_us_ = validity_.not_after_unix_s * 1'000'000;
  said_.clear();
  const std::int64_t now_unix_s = pki::unix_s_now();
  if (!first || pki::expiry_at(validity_, now_unix_s) == pki::Expiry::kValid) {
    spdlog::info("{}certificate {} {}", first ? "" : "renewed: ", files_.certificate.string(),
                 pki::expiry_text(validity_, now_unix_s));
  }
}

void CertificateWatch::look() {
  const std::int64_t now_unix_s = pki::unix_s_now();
  const pki::Expiry expiry = pki::expiry_at(validity_, now_unix_s);
  if (end_unix_us_ == 0 || expiry == pki::Expiry::kValid) {
    return;
  }
  constexpr std::int64_t kDay_s = 24LL * 3600;
  const std::string state =
      fmt::format("{} {}", static_cast<int>(expiry), (validity_.not_after_unix_s - now_unix_s) / kDay_s);
  if (state == said_) {
    return;
  }
  said_ = state;
  const std::string text = fmt::format("certificate {} {}: {}", files_.certificate.string(),
                                       pki::expiry_text(validity_, now_unix_s), renewal_);
  if (expiry == pki::Expiry::kSoon) {
    spdlog::warn("{}", text);
  } else {
    spdlog::error("{}", text);
  }
}

}  // namespace godwit::controlplane
