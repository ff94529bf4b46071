// What an authority signs, and what is read back from it.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "pki/authority.h"

namespace godwit::pki {
namespace {

using testing::ElementsAre, testing::HasSubstr;

constexpr std::int64_t kDay_s = 24LL * 3600;

Validity from_now(std::int64_t seconds) { return {unix_s_now() - 10, unix_s_now() + seconds}; }

Authority authority() { return *Authority::create(from_now(10 * kDay_s)); }

Issued issue(const Authority& from, const Identity& identity, std::vector<std::string> addresses = {}) {
  auto issued = from.issue({identity, std::move(addresses), from_now(kDay_s)});
  EXPECT_TRUE(issued) << issued.error().text;
  return *issued;
}

TEST(Identity, UriThereAndBack) {
  for (const Identity& identity :
       {Identity{Role::kControlplane, {}}, Identity{Role::kOperator, {}}, Identity{Role::kHost, "host-a.rack_1"}}) {
    EXPECT_EQ(Identity::parse_uri(identity.uri()), identity) << identity.uri();
  }
}

TEST(Identity, NothingElseIsOne) {
  for (const char* uri : {"", "godwit://", "godwit://host/", "godwit://host/a/b", "godwit://host/-a", "godwit://root",
                          "https://controlplane", "godwit://controlplane/", "GODWIT://operator", "godwit://host/a b"}) {
    EXPECT_FALSE(Identity::parse_uri(uri)) << uri;
  }
  EXPECT_FALSE(Identity::parse_uri(std::string("godwit://host/a\0b", 17)));
  EXPECT_FALSE(Identity::parse_uri("godwit://host/" + std::string(64, 'a')));
}

TEST(Certificate, SaysWhatWasAskedFor) {
  const auto ca = authority();
  const auto issued = issue(ca, {Role::kControlplane, {}}, {"cp.example.org", "10.0.0.5", "fd00::5"});
  const Certificate& certificate = issued.certificate;
  EXPECT_EQ(certificate.identity(), (Identity{Role::kControlplane, {}}));
  EXPECT_THAT(certificate.addresses(), ElementsAre("cp.example.org", "10.0.0.5", "fd00::5"));
  EXPECT_TRUE(certificate.covers("cp.example.org"));
  EXPECT_TRUE(certificate.covers("10.0.0.5"));
  EXPECT_TRUE(certificate.covers("fd00:0::5"));
  EXPECT_FALSE(certificate.covers("example.org"));
  EXPECT_FALSE(certificate.covers("10.0.0.6"));
  EXPECT_TRUE(certificate.belongs_to(issued.key));
  EXPECT_FALSE(certificate.belongs_to(ca.key()));
  EXPECT_FALSE(certificate.is_authority());
  EXPECT_TRUE(ca.certificate().is_authority());
  EXPECT_EQ(certificate.serial().size(), 32U);
}

TEST(Certificate, PemThereAndBack) {
  const auto issued = issue(authority(), {Role::kHost, "host-a"});
  const auto pem = *issued.certificate.pem();
  const auto all = Certificate::parse_all(pem + pem);
  ASSERT_TRUE(all);
  ASSERT_EQ(all->size(), 2U);
  EXPECT_EQ((*all)[1].serial(), issued.certificate.serial());
  EXPECT_EQ((*all)[1].identity(), (Identity{Role::kHost, "host-a"}));
  const auto key = PrivateKey::parse(*issued.key.pem());
  ASSERT_TRUE(key);
  EXPECT_TRUE(issued.certificate.belongs_to(*key));
}

TEST(Certificate, DamageIsNoCertificate) {
  auto pem = *authority().certificate().pem();
  EXPECT_FALSE(Certificate::parse_all(""));
  EXPECT_FALSE(Certificate::parse_all("hello"));
  EXPECT_FALSE(Certificate::parse_all(pem.substr(0, pem.size() / 2)));
  EXPECT_FALSE(Certificate::parse_all(pem + "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"));
  EXPECT_FALSE(PrivateKey::parse(pem));
}

TEST(Certificate, ChainLeadsToItsOwnAuthorityOnly) {
  const auto ours = authority(), theirs = authority();
  const auto issued = issue(ours, {Role::kOperator, {}});
  EXPECT_FALSE(chain_mistake({issued.certificate}, {ours.certificate()}));
  EXPECT_FALSE(chain_mistake({issued.certificate}, {theirs.certificate(), ours.certificate()}));
  EXPECT_TRUE(chain_mistake({issued.certificate}, {theirs.certificate()}));
  EXPECT_TRUE(chain_mistake({issued.certificate}, {}));
  // A certificate that is no CA's signs nothing.
  EXPECT_FALSE(Authority::load(issued.certificate, issued.key));
  EXPECT_FALSE(Authority::load(ours.certificate(), theirs.key()));
}

TEST(Authority, EndsWhatItSignsWithItself) {
  const auto ca = *Authority::create(from_now(100));
  const auto issued = ca.issue({{Role::kOperator, {}}, {}, from_now(kDay_s)});
  ASSERT_TRUE(issued);
  EXPECT_EQ(issued->certificate.validity().not_after_unix_s, ca.certificate().validity().not_after_unix_s);
}

TEST(Authority, ExpiredOrBadNamesAreRefused) {
  const auto over =
      Authority::create({unix_s_now() - 100, unix_s_now() - 1})->issue({{Role::kOperator, {}}, {}, from_now(kDay_s)});
  ASSERT_FALSE(over);
  EXPECT_EQ(over.error().code, Error::Code::kAuthority);
  EXPECT_THAT(over.error().text, HasSubstr("expired"));
  for (const char* bad : {"", "a,URI:godwit://operator", "a b", "x\n"}) {
    const auto refused = authority().issue({{Role::kControlplane, {}}, {bad}, from_now(kDay_s)});
    ASSERT_FALSE(refused) << bad;
    EXPECT_EQ(refused.error().code, Error::Code::kName);
  }
}

}  // namespace
}  // namespace godwit::pki
