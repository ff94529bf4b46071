// Every mistake in the files of a [tls] table is found, at the right file.
#include "pki/tls_files.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/atomic_file.h"
#include "pki/directory.h"
#include "tests/unit/base/temporary_directory.h"

namespace godwit::pki {
namespace {

using File = TlsMistake::File;
using testing::AllOf, testing::ElementsAre, testing::Field, testing::HasSubstr, testing::IsEmpty;

const Identity kHostA{Role::kHost, "host-a"};

auto mistake(File file, const char* text) {
  return AllOf(Field(&TlsMistake::file, file), Field(&TlsMistake::text, HasSubstr(text)));
}

class TlsFilesTest : public testing::Test {
 protected:
  void SetUp() override {
    ASSERT_TRUE(ours_.init({"host-a", "host-b"}, {}, {}, false));
    files_ = {ours_.certificate_path("ca"), ours_.certificate_path("host-a"), ours_.key_path("host-a")};
  }

  test::TemporaryDirectory temporary_;
  Directory ours_{temporary_ / "ours"};
  TlsFiles files_;
};

TEST_F(TlsFilesTest, GoodOnes) { EXPECT_THAT(tls_mistakes(files_, kHostA), IsEmpty()); }

TEST_F(TlsFilesTest, EachThatIsMissing) {
  EXPECT_THAT(tls_mistakes({"/nowhere/ca", "/nowhere/crt", "/nowhere/key"}, kHostA),
              ElementsAre(mistake(File::kCa, "/nowhere/ca"), mistake(File::kCertificate, "/nowhere/crt"),
                          mistake(File::kKey, "/nowhere/key")));
}

TEST_F(TlsFilesTest, KeyThatOthersMayUse) {
  for (const auto others :
       {std::filesystem::perms::group_read, std::filesystem::perms::others_read, std::filesystem::perms::group_write}) {
    std::filesystem::permissions(files_.key, std::filesystem::perms::owner_read | others);
    EXPECT_THAT(tls_mistakes(files_, kHostA), ElementsAre(mistake(File::kKey, "chmod 600")));
  }
  std::filesystem::permissions(files_.key, std::filesystem::perms::owner_read);
  EXPECT_THAT(tls_mistakes(files_, kHostA), IsEmpty());
}

TEST_F(TlsFilesTest, KeyOfAnotherCertificate) {
  files_.key = ours_.key_path("host-b");
  EXPECT_THAT(tls_mistakes(files_, kHostA), ElementsAre(mistake(File::kKey, "is not the key of")));
}

TEST_F(TlsFilesTest, CertificateOfSomebodyElse) {
  EXPECT_THAT(tls_mistakes(files_, {Role::kHost, "host-b"}),
              ElementsAre(mistake(File::kCertificate, "for host host-a, not for host host-b")));
  EXPECT_THAT(tls_mistakes(files_, {Role::kOperator, {}}),
              ElementsAre(mistake(File::kCertificate, "godwit://operator")));
}

TEST_F(TlsFilesTest, CertificateOfAnotherAuthority) {
  const Directory theirs{temporary_ / "theirs"};
  ASSERT_TRUE(theirs.init({"host-a"}, {}, {}, false));
  files_.ca = theirs.certificate_path("ca");
  EXPECT_THAT(tls_mistakes(files_, kHostA), ElementsAre(mistake(File::kCertificate, "is not signed by the CA")));
}

TEST_F(TlsFilesTest, FilesOfAnotherKind) {
  EXPECT_THAT(tls_mistakes({files_.key, files_.key, files_.ca}, kHostA),
              ElementsAre(mistake(File::kCa, "is no certificate"), mistake(File::kCertificate, "is no certificate"),
                          mistake(File::kKey, "is open to others"), mistake(File::kKey, "is no private key")));
}

TEST(Expiry, Edges) {
  const Validity validity{.not_before_unix_s = 1000, .not_after_unix_s = 1000 + 2 * kWarnBefore_s};
  EXPECT_EQ(expiry_at(validity, 999), Expiry::kNotYet);
  EXPECT_EQ(expiry_at(validity, 1000), Expiry::kValid);
  EXPECT_EQ(expiry_at(validity, 999 + kWarnBefore_s), Expiry::kValid);
  EXPECT_EQ(expiry_at(validity, 1000 + kWarnBefore_s), Expiry::kSoon);
  EXPECT_EQ(expiry_at(validity, validity.not_after_unix_s), Expiry::kSoon);
  EXPECT_EQ(expiry_at(validity, validity.not_after_unix_s + 1), Expiry::kExpired);
}

TEST(Expiry, Texts) {
  const Validity validity{.not_before_unix_s = 0, .not_after_unix_s = 1767323040};
  EXPECT_EQ(expiry_text(validity, 1767323040 - 3 * 86400 - 5), "expires in 3 days (2026-01-02 03:04 UTC)");
  EXPECT_EQ(expiry_text(validity, 1767323040 - 3600), "expires in 1 hour (2026-01-02 03:04 UTC)");
  EXPECT_EQ(expiry_text(validity, 1767323041), "has expired on 2026-01-02 03:04 UTC");
  EXPECT_EQ(expiry_text(validity, 1000), "is valid until 2026-01-02 03:04 UTC");
  EXPECT_EQ(expiry_text(validity, -1), "is valid from 1970-01-01 00:00 UTC only");
}

}  // namespace
}  // namespace godwit::pki
