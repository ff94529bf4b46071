// mTLS at the control plane's doors: who gets in, who may do what, and what goes on when certificates end.
#include <gmock/gmock.h>
#include <google/protobuf/descriptor.h>
#include <grpcpp/generic/generic_stub.h>
#include <grpcpp/security/credentials.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>

#include <future>

#include "base/atomic_file.h"
#include "base/unique_fd.h"
#include "controlplane/service/server.h"
#include "controlplane/tls/credentials.h"
#include "controlplane/tls/failure_text.h"
#include "pki/authority.h"
#include "pki/directory.h"
#include "tests/unit/base/temporary_directory.h"
#include "tests/unit/controlplane/fake_agent.h"

namespace godwit::controlplane::testing {
namespace {

using grpc::StatusCode;
using ::testing::HasSubstr;

/// A TCP port that nobody listens on.
int free_port() {
  const UniqueFd fd(::socket(AF_INET, SOCK_STREAM, 0));
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof(address);
  auto* generic = reinterpret_cast<sockaddr*>(&address);
  EXPECT_EQ(::bind(fd.get(), generic, size), 0);
  EXPECT_EQ(::getsockname(fd.get(), generic, &size), 0);
  return ntohs(address.sin_port);
}

class TlsTest : public ::testing::Test {
 protected:
  void SetUp() override {
    ASSERT_TRUE(pki_.init({"host-a", "host-b"}, {}, {}, false));
    ASSERT_TRUE(foreign_.init({"host-a"}, {}, {}, false));
    target_ = "127.0.0.1:" + std::to_string(free_port());
    config_.listen = {target_, "unix:" + (temporary_ / "cp.sock").string()};
    config_.database = temporary_ / "cp.db";
    config_.security.tls = files(pki_, "controlplane");
  }

  void start() {
    auto server = Server::start(config_);
    ASSERT_TRUE(server) << server.error();
    server_ = std::move(*server);
  }

  static pki::TlsFiles files(const pki::Directory& from, const std::string& name) {
    return {from.certificate_path("ca"), from.certificate_path(name), from.key_path(name)};
  }
  static config::SecurityConfig as(const pki::TlsFiles& files) { return {.tls = files}; }
  [[nodiscard]] config::SecurityConfig as(const std::string& name) const { return as(files(pki_, name)); }

  std::shared_ptr<grpc::Channel> channel(const config::SecurityConfig& security, const std::string& target) {
    grpc::ChannelArguments arguments;
    arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);  // a handshake of its own
    arguments.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, 200);
    return grpc::CreateCustomChannel(target, channel_credentials(target, security), arguments);
  }
  std::shared_ptr<grpc::Channel> channel(const config::SecurityConfig& security) { return channel(security, target_); }

  /// One call of a method by its full name, with an empty request; a stream's answer counts by its status.
  static grpc::Status call(const std::shared_ptr<grpc::Channel>& channel, const std::string& method) {
    grpc::GenericStub stub(channel);
    grpc::ClientContext context;
    context.set_deadline(std::chrono::system_clock::now() + kPatience);
    const grpc::ByteBuffer request(nullptr, 0);
    grpc::ByteBuffer response;
    std::promise<grpc::Status> done;
    stub.UnaryCall(&context, method, {}, &request, &response, [&](const grpc::Status& s) { done.set_value(s); });
    return done.get_future().get();
  }
  grpc::Status list_hosts(const config::SecurityConfig& security) {
    return call(channel(security), "/godwit.controlplane.v1.Operators/ListHosts");
  }
  std::string why(const config::SecurityConfig& security) {
    const auto status = list_hosts(security);
    EXPECT_EQ(status.error_code(), StatusCode::UNAVAILABLE) << status.error_message();
    return tls_failure_text(status.error_message(), target_, security);
  }

  /// A pair of files as `from`'s CA makes them, for this time and these addresses.
  pki::TlsFiles make(const pki::Identity& identity, pki::Validity validity, std::vector<std::string> addresses,
                     const std::string& name) {
    const auto read = [](const std::filesystem::path& path) { return read_file(path).value_or(""); };
    const auto ca = pki::Authority::load((*pki::Certificate::parse_all(read(pki_.certificate_path("ca"))))[0],
                                         *pki::PrivateKey::parse(read(pki_.key_path("ca"))));
    const auto issued = ca->issue({identity, std::move(addresses), validity});
    EXPECT_TRUE(write_file_atomically(pki_.key_path(name), *issued->key.pem()));
    EXPECT_TRUE(write_file_atomically(pki_.certificate_path(name), *issued->certificate.pem()));
    return files(pki_, name);
  }
  static pki::Validity expired() { return {pki::unix_s_now() - 3600, pki::unix_s_now() - 60}; }

  test::TemporaryDirectory temporary_;
  pki::Directory pki_{temporary_ / "pki"};
  pki::Directory foreign_{temporary_ / "foreign"};
  std::string target_;
  config::ControlplaneConfig config_;
  std::unique_ptr<Server> server_;
};

std::vector<std::string> methods_of(const std::string& service) {
  const auto* descriptor = google::protobuf::DescriptorPool::generated_pool()->FindServiceByName(service);
  std::vector<std::string> methods;
  for (int i = 0; i < descriptor->method_count(); ++i) {
    methods.push_back("/" + service + "/" + descriptor->method(i)->name());
  }
  return methods;
}

TEST_F(TlsTest, AnOperatorsVerbsAreForOperatorsOnly) {
  start();
  const auto methods = methods_of("godwit.controlplane.v1.Operators");
  ASSERT_FALSE(methods.empty());
  const auto host = channel(as("host-a")), operator_of = channel(as("operator"));
  for (const auto& method : methods) {
    const auto refused = call(host, method);
    EXPECT_EQ(refused.error_code(), StatusCode::PERMISSION_DENIED) << method;
    EXPECT_THAT(refused.error_message(), HasSubstr("host host-a")) << method;
    EXPECT_NE(call(operator_of, method).error_code(), StatusCode::PERMISSION_DENIED) << method;
  }
}

TEST_F(TlsTest, AHostActsAsItselfOnly) {
  start();
  FakeAgent itself(channel(as("host-a")), "host-a"), impostor(channel(as("host-b")), "host-a");
  EXPECT_TRUE(itself.connect().accepted());
  const auto refused = impostor.connect();
  EXPECT_FALSE(refused.accepted());
  EXPECT_EQ(refused.reason(), "its certificate is for host host-b, not for host host-a");
  itself.report();  // its stream was not replaced
  EXPECT_TRUE(itself.connected());
}

TEST_F(TlsTest, AnOperatorIsNoAgent) {
  start();
  const auto stub = api::Agents::NewStub(channel(as("operator")));
  grpc::ClientContext context;
  const auto stream = stub->Session(&context);
  api::ToAgent message;
  EXPECT_FALSE(stream->Read(&message));
  EXPECT_EQ(stream->Finish().error_code(), StatusCode::PERMISSION_DENIED);
}

TEST_F(TlsTest, AUnixSocketIsGuardedByItsMode) {
  start();
  EXPECT_TRUE(call(channel({}, config_.listen[1]), "/godwit.controlplane.v1.Operators/ListHosts").ok());
}

TEST_F(TlsTest, WithoutACertificateOfOurCaNobodyGetsIn) {
  start();
  FakeAgent agent(channel(as("host-a")), "host-a");
  EXPECT_TRUE(agent.connect().accepted());
  // Another CA: its holder does not trust our server either; with our CA's certificate it is our server that refuses.
  EXPECT_THAT(why(as(files(foreign_, "operator"))), HasSubstr("not signed by our CA"));
  auto mixed = files(foreign_, "operator");
  mixed.ca = pki_.certificate_path("ca");
  EXPECT_THAT(why(as(mixed)), HasSubstr("may not accept our certificate"));
  EXPECT_THAT(why(as(make({pki::Role::kOperator, {}}, expired(), {}, "late"))), HasSubstr("has expired on"));
  EXPECT_THAT(why({.insecure = true}), HasSubstr("may ask for certificates"));
  grpc::SslCredentialsOptions nameless;
  nameless.pem_root_certs = *read_file(pki_.certificate_path("ca"));
  const auto status =
      call(grpc::CreateChannel(target_, grpc::SslCredentials(nameless)), "/godwit.controlplane.v1.Operators/ListHosts");
  EXPECT_EQ(status.error_code(), StatusCode::UNAVAILABLE) << status.error_message();
  agent.report();
  EXPECT_TRUE(agent.connected()) << "whoever was in stays in";
}

TEST_F(TlsTest, TheControlPlanesCertificateIsNoClients) {
  start();
  // Its usage is to serve, so not even the handshake works.
  EXPECT_EQ(list_hosts(as("controlplane")).error_code(), StatusCode::UNAVAILABLE);
}

TEST_F(TlsTest, AServerThatIsNotTheControlPlaneIsNotTalkedTo) {
  config_.security.tls = files(pki_, "host-a");
  start();
  EXPECT_THAT(why(as("operator")), HasSubstr("not signed by our CA"));  // a host's certificate may not serve
  server_.reset();
  const pki::Validity day{pki::unix_s_now() - 10, pki::unix_s_now() + 86400};
  config_.security.tls = make({pki::Role::kControlplane, {}}, day, {"cp.example.org"}, "elsewhere");
  start();
  EXPECT_EQ(why(as("operator")), "its certificate is for cp.example.org, not for 127.0.0.1");
}

TEST_F(TlsTest, ClearTextServerIsSaidToBeOne) {
  config_.security = {.tls = std::nullopt, .insecure = true};
  start();
  EXPECT_THAT(why(as("operator")), HasSubstr("does not speak TLS"));
}

TEST_F(TlsTest, AConnectionThatBrokeIsNotPutDownToCertificates) {
  EXPECT_EQ(tls_failure_text("Socket closed", target_, as("operator")), "");
  EXPECT_EQ(tls_failure_text("Socket closed", target_, {.insecure = true}), "");
  EXPECT_EQ(tls_failure_text("failed to connect to all addresses; last error: tcp handshaker shutdown", target_,
                             as("operator")),
            "");
  EXPECT_EQ(
      tls_failure_text("failed to connect to all addresses; last error: Connection refused", target_, as("operator")),
      "");
}

TEST_F(TlsTest, RenewedCertificatesAreUsedWithoutARestart) {
  const pki::Validity day{pki::unix_s_now() - 10, pki::unix_s_now() + 86400};
  config_.security.tls = make({pki::Role::kControlplane, {}}, expired(), {"127.0.0.1"}, "renewed-cp");
  const auto client = make({pki::Role::kOperator, {}}, expired(), {}, "renewed-operator");
  start();
  EXPECT_FALSE(list_hosts(as("operator")).ok());
  make({pki::Role::kControlplane, {}}, day, {"127.0.0.1"}, "renewed-cp");
  const auto works_again = [&](const std::shared_ptr<grpc::Channel>& to) {
    return to->WaitForConnected(std::chrono::system_clock::now() + kPatience) &&
           call(to, "/godwit.controlplane.v1.Operators/ListHosts").ok();
  };
  EXPECT_TRUE(works_again(channel(as("operator")))) << "the server's";
  const auto same_channel = channel(as(client));
  EXPECT_FALSE(call(same_channel, "/godwit.controlplane.v1.Operators/ListHosts").ok());
  make({pki::Role::kOperator, {}}, day, {}, "renewed-operator");
  EXPECT_TRUE(works_again(same_channel)) << "the client's";
}

}  // namespace
}  // namespace godwit::controlplane::testing
