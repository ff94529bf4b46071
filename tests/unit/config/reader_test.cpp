// How mistakes are reported: all of them, each at its place, with the key that was meant.
#include "config/reader.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>

#include "config/parsers.h"
#include "tests/unit/base/temporary_directory.h"

namespace godwit::config {

struct Probe {
  std::string name;
  std::uint32_t count = 7;
  bool flag = false;
  std::vector<std::string> items;
};

void read(Reader& reader, Probe& probe) {
  reader.required("name", probe.name, text());
  reader.table("limits", [&](Reader& limits) { limits.optional("count", probe.count, integer<std::uint32_t>(1, 10)); });
  reader.optional("flag", probe.flag, boolean());
  reader.tables("item", 0, 2,
                [&](Reader& item) { item.required("label", probe.items.emplace_back(), text(name_rule)); });
}

namespace {

std::vector<std::string> mistakes(std::string_view content) {
  const auto loaded = parse_text<Probe>(content, "f");
  std::vector<std::string> out;
  if (!loaded) {
    for (const auto& diagnostic : loaded.error()) {
      out.push_back(diagnostic.text());
    }
  }
  return out;
}

using testing::ElementsAre;
using testing::HasSubstr;
using testing::StartsWith;

TEST(Reader, TakesAGoodFile) {
  const auto loaded = parse_text<Probe>("name = 'a'\nflag = true\n[limits]\ncount = 3\n[[item]]\nlabel = 'x'\n", "f");
  ASSERT_TRUE(loaded);
  EXPECT_EQ(loaded->name, "a");
  EXPECT_EQ(loaded->count, 3U);
  EXPECT_TRUE(loaded->flag);
  EXPECT_THAT(loaded->items, ElementsAre("x"));
}

TEST(Reader, DefaultsStay) {
  const auto loaded = parse_text<Probe>("name = ''", "f");
  ASSERT_TRUE(loaded);
  EXPECT_EQ(loaded->count, 7U);
}

TEST(Reader, ReportsAllMistakesInTheOrderOfTheirLines) {
  EXPECT_THAT(
      mistakes("flga = true\n"
               "name = 3\n"
               "[limits]\n"
               "  count = 11\n"
               "  quite_other = 1\n"
               "[[item]]\n"
               "label = 'x'\n"
               "[[item]]\n"
               "lable = 'y'\n"),
      ElementsAre("f:1:1: flga: is no known key; did you mean flag?",
                  "f:2:8: name: expected a string, found an integer", "f:4:11: limits.count: is 11, must be 1 to 10",
                  "f:5:3: limits.quite_other: is no known key", "f:8:1: item[1].label: is missing, and has no default",
                  "f:9:1: item[1].lable: is no known key; did you mean label?"));
}

TEST(Reader, SyntaxErrorHasItsPlace) {
  EXPECT_THAT(mistakes("name = 'a'\nflag = tru\n"), ElementsAre(StartsWith("f:2:")));
  EXPECT_THAT(mistakes("name = 'a'\nname = 'b'\n"), ElementsAre(StartsWith("f:2:")));
  EXPECT_THAT(mistakes("name = '\xff\xfe'"), ElementsAre(StartsWith("f:1:")));
}

TEST(Reader, WrongShapes) {
  EXPECT_THAT(mistakes("name = 'a'\nlimits = 3"),
              ElementsAre(HasSubstr("limits: expected a table: write [limits], found an integer")));
  EXPECT_THAT(mistakes("name = 'a'\n[item]\nlabel = 'x'"),
              ElementsAre(HasSubstr("item: expected an array of tables: write [[item]]")));
  EXPECT_THAT(mistakes("name = 'a'\nitem = [1]"),
              ElementsAre(HasSubstr("item[0]: expected a table, found an integer")));
  EXPECT_THAT(mistakes("name = 'a'\nitem = [{label = 'x'}, {label = 'y'}, {label = 'z'}]"),
              ElementsAre(HasSubstr("item: is there 3 times, must be 0 to 2")));
  EXPECT_THAT(mistakes("name = true"), ElementsAre(HasSubstr("found true or false")));
  EXPECT_THAT(mistakes("name = 1979-05-27"), ElementsAre(HasSubstr("found a date or time")));
}

TEST(Reader, IntegersOutOfTheirType) {
  EXPECT_THAT(mistakes("name = 'a'\nlimits.count = -1"), ElementsAre(HasSubstr("is -1, must be 1 to 10")));
  EXPECT_THAT(mistakes("name = 'a'\nlimits.count = 4294967297"), ElementsAre(HasSubstr("is 4294967297, must be")));
  EXPECT_THAT(mistakes("name = 'a'\nlimits.count = 3.0"), ElementsAre(HasSubstr("found a decimal number")));
}

TEST(Reader, OneMistakeIsOneLine) {
  for (const auto& line : mistakes("name = \"a\\nb\"\n\"ke\\ny\" = 1\n")) {
    EXPECT_EQ(line.find('\n'), std::string::npos) << line;
  }
}

TEST(Reader, AsksForEveryKey) {
  std::set<std::string> asked;
  ASSERT_TRUE(parse_text<Probe>("name = 'a'\n[[item]]\nlabel = 'x'", "f", &asked));
  EXPECT_THAT(asked, ElementsAre("flag", "item.label", "limits.count", "name"));
}

TEST(Reader, Closest) {
  const std::set<std::string, std::less<>> known{"mtu", "queues", "udp_port"};
  EXPECT_EQ(closest("mut", known), "mtu");
  EXPECT_EQ(closest("queue", known), "queues");
  EXPECT_EQ(closest("upd_prot", known), "udp_port");
  EXPECT_EQ(closest("gateway", known), "");
  EXPECT_EQ(closest(std::string(100'000, 'm'), known), "");
}

TEST(Reader, ExitStatusOfCheckConfig) {
  const test::TemporaryDirectory directory;
  std::ofstream(directory / "good") << "name = 'a'";
  std::ofstream(directory / "bad") << "nmae = 'a'";
  testing::internal::CaptureStdout();
  testing::internal::CaptureStderr();
  EXPECT_EQ(check_config<Probe>(directory / "good", load_file<Probe>), 0);
  EXPECT_EQ(check_config<Probe>(directory / "bad", load_file<Probe>), 1);
  EXPECT_EQ(check_config<Probe>(directory / "absent", load_file<Probe>), 2);
  EXPECT_THAT(testing::internal::GetCapturedStdout(), testing::EndsWith("good: ok\n"));
  const auto errors = testing::internal::GetCapturedStderr();
  EXPECT_THAT(errors, HasSubstr("did you mean name?"));
  EXPECT_THAT(errors, HasSubstr("No such file"));
}

TEST(Reader, HugeFileIsRefused) {
  const test::TemporaryDirectory directory;
  std::ofstream(directory / "huge") << std::string((1U << 20) + 1, '#');
  const auto loaded = load_file<Probe>(directory / "huge");
  ASSERT_FALSE(loaded);
  EXPECT_EQ(exit_status(loaded.error()), 2);
}

}  // namespace
}  // namespace godwit::config
