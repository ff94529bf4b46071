#include "controlplane/tls/gate.h"

#include <fmt/format.h>
#include <grpc/grpc_security_constants.h>
#include <grpcpp/security/auth_context.h>
#include <spdlog/spdlog.h>

#include "base/log.h"
#include "pki/certificate.h"

namespace godwit::controlplane {
namespace {

std::optional<pki::Identity> identity_of(const grpc::CallbackServerContext& caller) {
  const auto context = caller.auth_context();
  if (!context || !context->IsPeerAuthenticated()) {
    return std::nullopt;
  }
  const auto pem = context->FindPropertyValues(GRPC_X509_PEM_CERT_PROPERTY_NAME);
  if (pem.size() != 1) {
    return std::nullopt;
  }
  const auto chain = pki::Certificate::parse_all({pem[0].data(), pem[0].size()});
  return chain ? (*chain)[0].identity() : std::nullopt;
}

grpc::Status refusal(const grpc::CallbackServerContext& caller, const std::optional<pki::Identity>& identity,
                     const char* allowed) {
  const std::string holder = identity ? identity->text() : "nobody of a cluster";
  spdlog::warn("refused {}: its certificate is for {}, and {} may ask for this", printable(caller.peer()), holder,
               allowed);
  return {grpc::StatusCode::PERMISSION_DENIED,
          fmt::format("the certificate of this connection is for {}, and {} may ask for this", holder, allowed)};
}

}  // namespace

grpc::Status Gate::admit_operator(const grpc::CallbackServerContext& caller) const {
  if (!certificates_ || caller.peer().starts_with("unix:")) {
    return grpc::Status::OK;
  }
  const auto identity = identity_of(caller);
  return identity && identity->role == pki::Role::kOperator ? grpc::Status::OK
                                                            : refusal(caller, identity, "operators only");
}

std::expected<std::string, grpc::Status> Gate::admit_agent(const grpc::CallbackServerContext& caller) const {
  if (!certificates_ || caller.peer().starts_with("unix:")) {
    return std::string();
  }
  const auto identity = identity_of(caller);
  if (!identity || identity->role != pki::Role::kHost) {
    return std::unexpected(refusal(caller, identity, "hosts only"));
  }
  return identity->host;
}

}  // namespace godwit::controlplane
