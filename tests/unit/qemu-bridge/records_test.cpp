// What goes into QEMU's command line, what comes out of the journal, and which definitions are refused.
#include <gtest/gtest.h>

#include <algorithm>

#include "qemu-bridge/agent/definition.h"
#include "qemu-bridge/agent/fault_ranges.h"
#include "qemu-bridge/agent/journal.h"
#include "qemu-bridge/agent/qemu_arguments.h"
#include "qemu-bridge/qmp/json.h"
#include "tests/unit/qemu-bridge/temp_dir.h"

namespace godwit::bridge {
namespace {

const Id128 kUuid = *Id128::parse("11111111-2222-4333-8444-555555555555");
const HostPaths kPaths{"/run/vm", "/mem", "/huge", "/usr/bin/qemu"};

config::VmDefinition definition_with(std::vector<config::RegionDefinition> regions) {
  config::VmDefinition definition;
  definition.name = "web";
  definition.uuid = kUuid;
  definition.machine = "q35,smm=off";
  definition.vcpus = 2;
  definition.regions = std::move(regions);
  definition.arguments = {"-serial", "file:${run_dir}/${name}.log"};
  return definition;
}

std::string joined(const std::vector<std::string>& argv) {
  std::string out;
  for (const auto& argument : argv) {
    out += argument + " ";
  }
  return out;
}

TEST(QemuArguments, OneRegion) {
  const auto argv = joined(qemu_arguments(definition_with({{"ram0", 128u << 20, config::Backing::kTmpfs}}), kPaths,
                                          "q35,smm=off", config::Accel::kTcg, StartKind::kBoot));
  EXPECT_EQ(argv,
            "/usr/bin/qemu -name guest=web,debug-threads=on -uuid 11111111-2222-4333-8444-555555555555 "
            "-machine q35,smm=off,memory-backend=ram0 -accel tcg -smp 2 -m size=131072K -object "
            "memory-backend-file,id=ram0,size=131072K,mem-path=/mem/11111111-2222-4333-8444-555555555555.ram0.ram,"
            "share=on -display none -qmp unix:/run/vm/qmp.sock,server=on,wait=off -serial file:/run/vm/web.log ");
}

TEST(QemuArguments, SeveralRegionsAreNumaNodesAndIncomingWaits) {
  const auto argv = joined(qemu_arguments(
      definition_with({{"a", 64u << 20, config::Backing::kTmpfs}, {"b", 64u << 20, config::Backing::kHugetlbfs}}),
      kPaths, "pc-q35-7.2", config::Accel::kKvm, StartKind::kIncoming));
  EXPECT_NE(argv.find("-m size=131072K"), std::string::npos);
  EXPECT_NE(argv.find("mem-path=/huge/11111111-2222-4333-8444-555555555555.b.ram,share=on -numa "
                      "node,nodeid=1,memdev=b"),
            std::string::npos);
  EXPECT_EQ(argv.find("memory-backend="), std::string::npos);
  EXPECT_TRUE(argv.ends_with("-incoming defer -S "));
}

TEST(QemuArguments, TheSourcesMachineTypeKeepsTheOptions) {
  EXPECT_EQ(machine_of_type("q35,smm=off", "pc-q35-7.2"), "pc-q35-7.2,smm=off");
  EXPECT_EQ(machine_of_type("pc", "pc-i440fx-7.2"), "pc-i440fx-7.2");
  EXPECT_EQ(machine_of_type("pc", ""), "pc");
}

struct BadDefinition {
  const char* what;
  std::function<void(controlplane::v1::VmDefinition&)> spoil;
  const char* text;
};
class BadDefinitions : public testing::TestWithParam<BadDefinition> {};

TEST_P(BadDefinitions, AreRefusedByField) {
  auto proto = to_proto(definition_with({{"ram0", 128u << 20, config::Backing::kTmpfs}}));
  ASSERT_TRUE(definition_of(proto));
  GetParam().spoil(proto);
  const auto definition = definition_of(proto);
  ASSERT_FALSE(definition) << GetParam().what;
  EXPECT_NE(definition.error().find(GetParam().text), std::string::npos) << definition.error();
}

using Proto = controlplane::v1::VmDefinition;
INSTANTIATE_TEST_SUITE_P(
    Fields, BadDefinitions,
    testing::Values(
        BadDefinition{"path in name", [](Proto& p) { p.set_name("../etc"); }, "name"},
        BadDefinition{"short uuid", [](Proto& p) { p.set_uuid("abc"); }, "uuid"},
        BadDefinition{"nil uuid", [](Proto& p) { p.set_uuid(std::string(16, '\0')); }, "uuid"},
        BadDefinition{"backend in machine", [](Proto& p) { p.set_machine("pc,memory-backend=x"); }, "machine"},
        BadDefinition{"accel", [](Proto& p) { p.set_accel("xen"); }, "accel"},
        BadDefinition{"vcpus", [](Proto& p) { p.set_vcpus(1u << 30); }, "vcpus"},
        BadDefinition{"options in a region's name", [](Proto& p) { p.mutable_regions(0)->set_name("r,share=off"); },
                      "region name"},
        BadDefinition{"half a page", [](Proto& p) { p.mutable_regions(0)->set_bytes(2048); }, "size of region"},
        BadDefinition{"4 KiB on hugetlbfs",
                      [](Proto& p) {
                        p.mutable_regions(0)->set_backing("hugetlbfs");
                        p.mutable_regions(0)->set_bytes(4096);
                      },
                      "size of region"},
        BadDefinition{"twice", [](Proto& p) { *p.add_regions() = p.regions(0); }, "twice"},
        BadDefinition{"none", [](Proto& p) { p.clear_regions(); }, "regions"},
        BadDefinition{"relative binary", [](Proto& p) { p.set_qemu_binary("qemu"); }, "qemu_binary"},
        BadDefinition{"line break", [](Proto& p) { p.add_arguments("a\nb"); }, "argument"}));

VmRecord record() {
  VmRecord record;
  record.definition = definition_with({{"ram0", 128u << 20, config::Backing::kTmpfs}});
  record.image_id = Id128::random();
  record.ownership = UINT64_MAX;
  record.epoch = UINT32_MAX - 1;
  record.qmp_path = "/run/vm/qmp.sock";
  record.process = {4242, 99};
  record.ram_files = {{"ram0", "/dev/shm/theirs.ram"}};
  record.ours = true;
  record.userfaultfd_in_qemu = 17;
  record.migration = MigrationRecord{Id128::random(), MigrationRole::kSource, MigrationPhase::kSwitching, 7};
  return record;
}

TEST(Journal, WhatIsSavedComesBack) {
  TempDir dir;
  Journal journal(dir.path());
  ASSERT_TRUE(journal.load());
  const auto saved = record();
  ASSERT_TRUE(journal.save(saved));
  const auto loaded = journal.load();
  ASSERT_TRUE(loaded);
  ASSERT_EQ(loaded->records.size(), 1u);
  EXPECT_EQ(to_text(loaded->records[0]), to_text(saved));
  EXPECT_EQ(loaded->records[0].ownership, UINT64_MAX);
  EXPECT_EQ(loaded->records[0].migration->phase, MigrationPhase::kSwitching);
  ASSERT_TRUE(journal.remove(kUuid));
  EXPECT_TRUE(journal.load()->records.empty());
}

TEST(Journal, ABrokenFileIsKeptAsideAndReported) {
  TempDir dir;
  Journal journal(dir.path());
  ASSERT_TRUE(journal.load());
  const std::string good = to_text(record());
  const auto file = dir.path() / "vms" / (kUuid.text() + ".json");
  for (const std::string& bad : {std::string("{"), good.substr(0, good.size() / 2), std::string("[]"), std::string()}) {
    ASSERT_TRUE(write_file_atomically(file, bad));
    const auto loaded = journal.load();
    ASSERT_TRUE(loaded);
    EXPECT_TRUE(loaded->records.empty());
    EXPECT_EQ(loaded->problems.size(), 1u);
    EXPECT_TRUE(std::filesystem::exists(file.string() + ".broken"));
  }
}

TEST(Journal, NoFieldMayBeOfAnotherType) {
  const auto good = Json::parse(to_text(record()));
  ASSERT_TRUE(parse_record(good.dump()));
  for (const auto& [key, value] : good.items()) {
    auto bad = good;
    bad[key] = Json::array({1});
    EXPECT_FALSE(parse_record(bad.dump())) << key;
  }
}

TEST(Journal, KnowsWhetherTheSwitchHadBegun) {
  auto saved = record();
  for (const bool begun : {false, true}) {
    saved.migration->phase = MigrationPhase::kAborted;
    saved.migration->switch_begun = begun;
    EXPECT_EQ(parse_record(to_text(saved))->migration->switch_begun, begun);
  }
  // One that an older bridge has left does not say.
  for (const auto phase : {MigrationPhase::kTransferring, MigrationPhase::kSwitching, MigrationPhase::kAborted}) {
    saved.migration->phase = phase;
    auto old = Json::parse(to_text(saved));
    old["migration"].erase("switch_begun");
    EXPECT_EQ(parse_record(old.dump())->migration->switch_begun, phase != MigrationPhase::kTransferring);
  }
  auto bad = Json::parse(to_text(saved));
  bad["migration"]["switch_begun"] = 1;
  EXPECT_FALSE(parse_record(bad.dump()));
}

TEST(Journal, ADestinationIsNeverTakenForASource) {
  auto bad = Json::parse(to_text(record()));
  bad["migration"]["role"] = "destination";
  EXPECT_FALSE(parse_record(bad.dump()));
  bad["migration"]["phase"] = "pulling";  // either role has that
  EXPECT_TRUE(parse_record(bad.dump()));
}

TEST(Journal, WhoIsNeededElsewhereIsKnownAgain) {
  auto pulling = record();
  pulling.migration->phase = MigrationPhase::kPulling;
  pulling.migration->may_pull = pulling.migration->keeps_stores = true;
  pulling.fault_descriptors = {{17, 0, 1024}, {18, 1024, 31744}};
  pulling.backends = {
      {.id = "ram0", .bytes = 128u << 20, .share = true, .type = "memory-backend-file", .mem_path = "/dev/shm/vm"}};
  const auto read = parse_record(to_text(pulling));
  ASSERT_TRUE(read) << read.error();
  EXPECT_EQ(read->migration->phase, MigrationPhase::kPulling);
  EXPECT_TRUE(read->migration->may_pull);
  EXPECT_TRUE(read->migration->keeps_stores);
  EXPECT_EQ(read->fault_descriptors, pulling.fault_descriptors);
  ASSERT_EQ(read->backends.size(), 1U);
  EXPECT_EQ(read->backends[0].mem_path, pulling.backends[0].mem_path);
  EXPECT_EQ(read->backends[0].bytes, pulling.backends[0].bytes);
  auto json = Json::parse(to_text(pulling));
  json["migration"].erase("may_pull");  // as before there was post-copy
  json["migration"].erase("keeps_stores");
  EXPECT_FALSE(parse_record(json.dump())->migration->continued);
  json["migration"].erase("continued");  // as it came before the phase
  EXPECT_TRUE(parse_record(json.dump())->migration->continued);
  EXPECT_FALSE(parse_record(json.dump())->migration->may_pull);
  EXPECT_FALSE(parse_record(json.dump())->migration->keeps_stores);
  json["fault_descriptors"][1]["first_page"] = 1025;
  EXPECT_FALSE(parse_record(json.dump())) << "a page that no descriptor serves";
  json["fault_descriptors"][1]["first_page"] = 1024;
  json["fault_descriptors"][1]["in_qemu"] = -1;
  EXPECT_FALSE(parse_record(json.dump()));
  json["fault_descriptors"][1]["in_qemu"] = 18;
  EXPECT_TRUE(parse_record(json.dump()));
  json["backends"][0].erase("mem_path");
  EXPECT_FALSE(parse_record(json.dump()));
}

TEST(FaultRanges, OneForEachEightVcpusAnd64GiB) {
  constexpr std::uint64_t kGiB = 1ULL << 30;
  const auto count = [](std::vector<std::uint64_t> regions, std::uint32_t vcpus) {
    return fault_ranges(regions, vcpus).size();
  };
  EXPECT_EQ(count({kGiB}, 1), 1u);
  EXPECT_EQ(count({kGiB}, 8), 1u);
  EXPECT_EQ(count({kGiB}, 9), 2u);
  EXPECT_EQ(count({64 * kGiB}, 1), 1u);
  EXPECT_EQ(count({64 * kGiB, 4096}, 1), 2u);
  EXPECT_EQ(count({16384 * kGiB}, 500), 16u);
  EXPECT_EQ(count({4096}, 500), 1u) << "one page needs no more";
}

TEST(FaultRanges, CoverAllPagesAndSplitNoHugePage) {
  // A region that is no multiple of 2 MiB shifts the page numbers of the huge pages behind it.
  const std::vector<std::uint64_t> regions{640u << 10, 6u << 20, 100u << 20};
  const auto ranges = fault_ranges(regions, 64);
  ASSERT_EQ(ranges.size(), 8u);
  std::uint64_t next = 0;
  for (const auto& range : ranges) {
    EXPECT_EQ(range.first_page, next);
    EXPECT_GT(range.pages, 0u);
    EXPECT_TRUE(range.first_page == 0 || (range.first_page - 160) % 512 == 0) << range.first_page;
    next += range.pages;
  }
  EXPECT_EQ(next, ((640u << 10) + (6u << 20) + (100u << 20)) / 4096);
}

}  // namespace
}  // namespace godwit::bridge
