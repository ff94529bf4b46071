#include "controlplane/tls/credentials.h"

#include <fmt/format.h>
#include <grpcpp/security/credentials.h>
#include <grpcpp/security/server_credentials.h>
#include <grpcpp/security/tls_certificate_provider.h>
#include <grpcpp/security/tls_certificate_verifier.h>
#include <grpcpp/security/tls_credentials_options.h>

#include "base/check.h"
#include "base/ip_address.h"
#include "controlplane/tls/failure_text.h"

namespace godwit::controlplane {
namespace {

namespace tls = grpc::experimental;

constexpr unsigned kReadAgain_s = 1;

std::shared_ptr<tls::CertificateProviderInterface> provider_of(const pki::TlsFiles& files) {
  return std::make_shared<tls::FileWatcherCertificateProvider>(files.key.string(), files.certificate.string(),
                                                               files.ca.string(), kReadAgain_s);
}

std::string host_of(std::string target) {
  if (const auto colon = target.rfind(':'); colon != std::string::npos && target.find(':') == colon) {
    target.resize(colon);
  } else if (target.starts_with('[')) {
    target = target.substr(1, target.find(']') - 1);
  }
  return target;
}

/// Runs after the chain has been verified: the server must be the control plane, under the name that we called.
class ControlplaneVerifier final : public tls::ExternalCertificateVerifier {
 public:
  bool Verify(tls::TlsCustomVerificationCheckRequest* request, std::function<void(grpc::Status)>,
              grpc::Status* status) override {
    const auto target = request->target_name();
    const auto pem = request->peer_cert();
    const std::string mistake =
        server_mistake({pem.data(), pem.size()}, host_of(std::string(target.data(), target.size())));
    *status = mistake.empty() ? grpc::Status::OK
                              : grpc::Status(grpc::StatusCode::UNAUTHENTICATED, std::string(kOurWords) + mistake);
    return true;
  }
  void Cancel(tls::TlsCustomVerificationCheckRequest*) override {}

 private:
  static std::string server_mistake(const std::string& pem, const std::string& host) {
    const auto chain = pki::Certificate::parse_all(pem);
    if (!chain) {
      return "its certificate cannot be read";
    }
    const auto identity = (*chain)[0].identity();
    if (!identity || identity->role != pki::Role::kControlplane) {
      return fmt::format("its certificate is for {}, not for the control plane",
                         identity ? identity->text() : "nobody of a cluster");
    }
    if (!(*chain)[0].covers(host)) {
      std::string addresses;
      for (const auto& address : (*chain)[0].addresses()) {
        addresses += (addresses.empty() ? "" : ", ") + address;
      }
      return fmt::format("its certificate is for {}, not for {}", addresses, host);
    }
    return {};
  }
};

}  // namespace

std::shared_ptr<grpc::ServerCredentials> server_credentials(const config::SecurityConfig& security) {
  if (!security.tls) {
    GW_ASSERT(security.insecure);
    return grpc::InsecureServerCredentials();
  }
  tls::TlsServerCredentialsOptions options(provider_of(*security.tls));
  options.watch_root_certs();
  options.watch_identity_key_cert_pairs();
  options.set_cert_request_type(GRPC_SSL_REQUEST_AND_REQUIRE_CLIENT_CERTIFICATE_AND_VERIFY);
  return tls::TlsServerCredentials(options);
}

std::shared_ptr<grpc::ChannelCredentials> channel_credentials(const std::string& target,
                                                              const config::SecurityConfig& security) {
  if (config::is_unix_target(target) || !security.tls) {
    GW_ASSERT(config::is_unix_target(target) || security.insecure);
    return grpc::InsecureChannelCredentials();
  }
  tls::TlsChannelCredentialsOptions options;
  options.set_certificate_provider(provider_of(*security.tls));
  options.watch_root_certs();
  options.watch_identity_key_cert_pairs();
  options.set_certificate_verifier(tls::ExternalCertificateVerifier::Create<ControlplaneVerifier>());
  options.set_check_call_host(false);  // the verifier above looks at the name
  return tls::TlsCredentials(options);
}

bool stays_on_machine(const std::string& target) {
  const std::string host = host_of(target);
  return config::is_unix_target(target) || host == "localhost" || host == "::1" ||
         (host.starts_with("127.") && IpAddress::parse(host));
}

}  // namespace godwit::controlplane
