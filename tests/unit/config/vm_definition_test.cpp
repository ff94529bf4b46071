#include "config/vm_definition.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "config/reader.h"

namespace godwit::config {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

const std::string kHead = "name = 'v'\nuuid = '3f2a9c1e-5b7d-4e80-9a61-c0d4e5f60718'\nmachine = 'pc'\n";
const std::string kRegion = "[[region]]\nname = 'ram0'\nsize = '512MiB'\n";

std::vector<std::string> mistakes(const std::string& content) {
  const auto loaded = parse_text<VmDefinition>(content, "f");
  std::vector<std::string> out;
  for (const auto& diagnostic : loaded ? Diagnostics{} : loaded.error()) {
    out.push_back(diagnostic.key + ": " + diagnostic.message);
  }
  return out;
}

TEST(VmDefinitionFile, SmallestIsValid) {
  const auto loaded = parse_text<VmDefinition>(kHead + kRegion, "f");
  ASSERT_TRUE(loaded);
  EXPECT_EQ(loaded->uuid.text(), "3f2a9c1e-5b7d-4e80-9a61-c0d4e5f60718");
  EXPECT_EQ(loaded->regions[0].bytes, 512ULL << 20);
  EXPECT_EQ(loaded->regions[0].backing, Backing::kTmpfs);
}

TEST(VmDefinitionFile, IdentityMustBeRight) {
  EXPECT_THAT(mistakes("name = 'a/b'\nuuid = 'x'\nmachine = 'pc,memory-backend=m'\n" + kRegion),
              ElementsAre(HasSubstr("name: is \"a/b\""), HasSubstr("uuid: is \"x\", must be a UUID"),
                          HasSubstr("machine: must not set memory-backend")));
  EXPECT_THAT(mistakes("name = 'v'\nuuid = '00000000-0000-0000-0000-000000000000'\nmachine = 'pc'\n" + kRegion),
              ElementsAre(HasSubstr("uuid: is all zero")));
}

TEST(VmDefinitionFile, Regions) {
  EXPECT_THAT(mistakes(kHead), ElementsAre(HasSubstr("region: is missing")));
  EXPECT_THAT(mistakes(kHead + kRegion + kRegion), ElementsAre(HasSubstr("\"ram0\" is there twice")));
  EXPECT_THAT(mistakes(kHead + "[[region]]\nname = 'r'\nsize = '1025KiB'\n"),
              ElementsAre(HasSubstr("no multiple of the 4 KiB")));
  EXPECT_THAT(mistakes(kHead + "[[region]]\nname = 'r'\nsize = '3MiB'\nbacking = 'hugetlbfs'"),
              ElementsAre(HasSubstr("no multiple of the 2 MiB")));
  EXPECT_THAT(mistakes(kHead + "[[region]]\nname = 'r,size=1'\nsize = '0'\nbacking = 'ext4'"), testing::SizeIs(3));
}

TEST(VmDefinitionFile, ArgumentsKeepToTheirPlace) {
  const auto with = [](const std::string& arguments) {
    return mistakes(kHead + "arguments = " + arguments + "\n" + kRegion);
  };
  EXPECT_THAT(with("['-serial', 'file:${run_dir}/${name}-${uuid}', '-append', 'a $HOME']"), IsEmpty());
  EXPECT_THAT(
      with("['a${HOME}', '${name', '-m', '--incoming']"),
      ElementsAre(HasSubstr("arguments[0]: names the variable \"HOME\""), HasSubstr("arguments[1]: names"),
                  HasSubstr("arguments[2]: is -m, which godwit sets"), HasSubstr("arguments[3]: is --incoming")));
}

TEST(VmDefinitionFile, Expands) {
  const std::map<std::string, std::string> variables{{"name", "v"}, {"run_dir", "/run/${name}"}};
  EXPECT_EQ(expand("${run_dir}/${name}.log", variables), "/run/${name}/v.log");
  EXPECT_EQ(expand("${other}${name", variables), "${other}${name");
  EXPECT_EQ(expand("plain", variables), "plain");
}

}  // namespace
}  // namespace godwit::config
