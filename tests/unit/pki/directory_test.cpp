// What `godwitctl pki` writes: names, modes, nothing overwritten.
#include "pki/directory.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/atomic_file.h"
#include "pki/tls_files.h"
#include "tests/unit/base/temporary_directory.h"

namespace godwit::pki {
namespace {

using testing::ElementsAre, testing::HasSubstr, testing::IsEmpty;

class DirectoryTest : public testing::Test {
 protected:
  [[nodiscard]] TlsFiles files(const std::string& name) const {
    return {directory_.certificate_path("ca"), directory_.certificate_path(name), directory_.key_path(name)};
  }
  [[nodiscard]] std::string content(const std::filesystem::path& path) const { return read_file(path).value_or(""); }
  [[nodiscard]] mode_t mode_of(const std::filesystem::path& path) const {
    struct stat status {};
    EXPECT_EQ(::stat(path.c_str(), &status), 0) << path;
    return status.st_mode & 07777;
  }
  void init() {
    const auto made = directory_.init({"host-a", "host-b"}, {"cp.example.org"}, {}, false);
    ASSERT_TRUE(made) << made.error().text;
  }

  test::TemporaryDirectory temporary_;
  Directory directory_{temporary_ / "pki"};
};

TEST_F(DirectoryTest, InitMakesWhatTheDaemonsAccept) {
  init();
  EXPECT_THAT(tls_mistakes(files("controlplane"), {Role::kControlplane, {}}), IsEmpty());
  EXPECT_THAT(tls_mistakes(files("operator"), {Role::kOperator, {}}), IsEmpty());
  EXPECT_THAT(tls_mistakes(files("host-b"), {Role::kHost, "host-b"}), IsEmpty());
  const auto controlplane = load_certificate(files("controlplane").certificate);
  EXPECT_TRUE(controlplane->covers("cp.example.org"));
  EXPECT_TRUE(controlplane->covers("127.0.0.1"));
}

TEST_F(DirectoryTest, KeysAreForTheirOwnerOnly) {
  const mode_t before = umask(0);
  init();
  umask(before);
  for (const char* name : {"ca", "controlplane", "operator", "host-a"}) {
    EXPECT_EQ(mode_of(directory_.key_path(name)), 0600U) << name;
    EXPECT_EQ(mode_of(directory_.certificate_path(name)), 0644U) << name;
  }
}

TEST_F(DirectoryTest, NothingIsOverwrittenUnasked) {
  init();
  const std::string before = content(directory_.key_path("ca")) + content(directory_.key_path("host-a"));
  const auto again = directory_.init({"host-c"}, {}, {}, false);
  ASSERT_FALSE(again);
  EXPECT_EQ(again.error().code, Error::Code::kExists);
  const auto issued = directory_.issue({.name = "host-a"});
  ASSERT_FALSE(issued);
  EXPECT_THAT(issued.error().text, HasSubstr("--force"));
  EXPECT_EQ(content(directory_.key_path("ca")) + content(directory_.key_path("host-a")), before);
  EXPECT_FALSE(std::filesystem::exists(directory_.key_path("host-c")));
}

TEST_F(DirectoryTest, IssueAddsOneAndRenewsWithForce) {
  init();
  ASSERT_TRUE(directory_.issue({.name = "host-c"}));
  EXPECT_THAT(tls_mistakes(files("host-c"), {Role::kHost, "host-c"}), IsEmpty());
  const auto serial = load_certificate(files("controlplane").certificate)->serial();
  ASSERT_TRUE(directory_.issue({.name = "controlplane", .overwrite = true}));
  const auto renewed = load_certificate(files("controlplane").certificate);
  EXPECT_NE(renewed->serial(), serial);
  EXPECT_TRUE(renewed->covers("cp.example.org")) << "a renewal keeps the addresses";
  EXPECT_THAT(tls_mistakes(files("controlplane"), {Role::kControlplane, {}}), IsEmpty());
}

TEST_F(DirectoryTest, WhatIsRenewedStaysItsOwners) {
  if (::geteuid() != 0) {
    GTEST_SKIP() << "needs root: files of somebody else";
  }
  constexpr uid_t kSomebody = 65534;
  init();
  const auto key = directory_.key_path("controlplane");
  ASSERT_EQ(::chown(key.c_str(), kSomebody, kSomebody), 0);
  ASSERT_TRUE(directory_.issue({.name = "controlplane", .overwrite = true}));
  struct stat status {};
  ASSERT_EQ(::lstat(key.c_str(), &status), 0);
  EXPECT_EQ(status.st_uid, kSomebody) << "its daemon cannot read its key any more";
  EXPECT_EQ(status.st_mode & 0777, 0600U);
}

TEST_F(DirectoryTest, BadNamesChangeNothing) {
  for (const std::vector<std::string>& hosts :
       {std::vector<std::string>{"../a"}, {"host-a", "host-a"}, {"operator"}, {"ca"}, {""}}) {
    const auto refused = directory_.init(hosts, {}, {}, false);
    ASSERT_FALSE(refused);
    EXPECT_EQ(refused.error().code, Error::Code::kName);
  }
  EXPECT_FALSE(directory_.init({"host-a"}, {"not an address"}, {}, false));
  EXPECT_FALSE(std::filesystem::exists(temporary_ / "pki"));
}

TEST_F(DirectoryTest, WithoutACaTheCommandToMakeOneIsNamed) {
  EXPECT_THAT(directory_.issue({.name = "host-a"}).error().text, HasSubstr("godwitctl pki init"));
  EXPECT_THAT(directory_.list().error().text, HasSubstr("godwitctl pki init"));
}

TEST_F(DirectoryTest, ListShowsAllWithTheirFaults) {
  init();
  ASSERT_TRUE(write_file_atomically(directory_.key_path("host-a"), content(directory_.key_path("host-b"))));
  ASSERT_TRUE(write_file_atomically(directory_.certificate_path("broken"), "nothing"));
  const auto entries = directory_.list();
  ASSERT_TRUE(entries);
  std::vector<std::string> names, problems;
  for (const auto& entry : *entries) {
    names.push_back(entry.name);
    problems.push_back(entry.problem);
  }
  EXPECT_THAT(names, ElementsAre("broken", "ca", "controlplane", "host-a", "host-b", "operator"));
  EXPECT_THAT(problems,
              ElementsAre(HasSubstr("no certificate"), "", "", HasSubstr("another certificate's key"), "", ""));
  EXPECT_EQ((*entries)[3].holder, "host host-a");
}

}  // namespace
}  // namespace godwit::pki
