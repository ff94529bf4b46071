// What godwitctl prints: tables, progress, summary, JSON.
#include <gtest/gtest.h>

#include "base/uuid.h"
#include "controlplane/ctl/format.h"

namespace godwit::ctl {
namespace {

api::Migration transferring() {
  api::Migration migration;
  migration.set_id(std::string(16, '\x11'));
  migration.set_vm_name("demo");
  migration.set_source("host-a");
  migration.mutable_plan()->set_destination("host-b");
  migration.set_state(api::TRANSFERRING);
  migration.set_created_unix_us(1'700'000'000'000'000);
  auto& stats = *migration.mutable_stats();
  stats.set_pages_total(1000);
  stats.set_pages_left(250);
  stats.set_round(2);
  stats.set_rate_bps(10'000'000'000);
  stats.set_estimated_left_us(1'500'000);
  return migration;
}

api::Migration committed() {
  api::Migration migration = transferring();
  migration.set_state(api::COMMITTED);
  migration.set_ended(true);
  migration.set_ended_unix_us(1'700'000'004'500'000);
  migration.set_stop_unix_us(1'700'000'004'000'000);
  migration.set_resume_unix_us(1'700'000'004'012'300);
  migration.set_reused(true);
  migration.set_reuse_reason("retained image of epoch 5, 1 GiB");
  migration.mutable_stats()->set_pages_sent(30);
  migration.mutable_stats()->set_pages_zero(20);
  migration.mutable_stats()->set_pages_reused(950);
  migration.mutable_stats()->set_wire_bytes(130'000);
  return migration;
}

TEST(CtlFormat, TableAlignsAlsoUtf8) {
  EXPECT_EQ(table({{"A", "B"}, {"long", "x"}, {"ü", "y"}}), "A     B\nlong  x\nü     y\n");
}

TEST(CtlFormat, Spans) {
  const std::pair<std::int64_t, const char*> rows[] = {{-1, "-"},
                                                       {0, "0 us"},
                                                       {999, "999 us"},
                                                       {12'300, "12.3 ms"},
                                                       {4'500'000, "4.5 s"},
                                                       {182'000'000, "3 min 2 s"},
                                                       {7'260'000'000, "2 h 1 min"},
                                                       {90'000'000'000, "1 d 1 h"}};
  for (const auto& [us, text] : rows) {
    EXPECT_EQ(span_text(us), text);
  }
  EXPECT_EQ(age_text(0, 5), "never");
  EXPECT_EQ(age_text(1'000'000, 1'500'000), "now");
  EXPECT_EQ(age_text(1'000'000, 31'200'000), "30.0 s ago");
  EXPECT_EQ(time_text(1'700'000'000'000'000), "2023-11-14 22:13:20 UTC");
}

TEST(CtlFormat, Progress) {
  EXPECT_EQ(progress_line(transferring(), 200),
            "[##################......]  75 %  10 Gbit/s  round 2  250 pages left  about 1.5 s left");
  EXPECT_EQ(progress_line(transferring(), 10).size(), 10U);
  api::Migration odd = transferring();
  odd.mutable_stats()->set_pages_left(5000);  // more than there are: never a bar beyond its ends
  EXPECT_NE(progress_line(odd, 200).find("[........................]   0 %"), std::string::npos);
  api::Migration preparing;
  preparing.set_state(api::PREPARING);
  preparing.set_note("preparing host-b\x1b[2J");
  EXPECT_EQ(progress_line(preparing, 200).find('\x1b'), std::string::npos);
}

TEST(CtlFormat, Summary) {
  const std::string text = summary(committed());
  for (const char* part : {"COMMITTED  VM demo from host-a to host-b", "4.5 s", "12.3 ms", "130000 bytes",
                           "30 sent, 20 zero, 950 reused of 1000", "retained image of epoch 5, 1 GiB"}) {
    EXPECT_NE(text.find(part), std::string::npos) << part << " in\n" << text;
  }
  api::Migration aborted = transferring();
  aborted.set_state(api::ABORTED);
  aborted.set_reason("host-b: no room");
  aborted.set_stop_unix_us(5);
  aborted.set_resume_unix_us(6);
  const std::string why = summary(aborted);
  EXPECT_TRUE(
      why.ends_with("\nnot moved: host-b: no room; VM demo belongs to host-a as before, and may be migrated again\n"))
      << why;
  EXPECT_EQ(downtime_us(aborted), -1);
}

TEST(CtlFormat, MigrationJson) {
  const Json json = to_json(committed());
  EXPECT_EQ(json["id"], "11111111-1111-1111-1111-111111111111");
  EXPECT_EQ(json["state"], "COMMITTED");
  EXPECT_EQ(json["destination"], "host-b");
  EXPECT_EQ(json["downtime_us"], 12'300);
  EXPECT_EQ(json["stats"]["wire_bytes"], 130'000);
  EXPECT_EQ(json["stats"]["pages_reused"], 950);
  EXPECT_EQ(json["plan"]["mode"], "PRECOPY");
  EXPECT_TRUE(to_json(transferring())["downtime_us"].is_null());
}

TEST(CtlFormat, Lists) {
  api::ListHostsResponse hosts;
  EXPECT_EQ(hosts_table(hosts, 0), "no hosts\n");
  auto& host = *hosts.add_hosts();
  host.mutable_info()->set_name("host-a");
  host.mutable_info()->set_dataplane_up(true);
  host.mutable_info()->set_dataplane_address("10.0.0.1");
  host.mutable_info()->set_memory_free_bytes(4ULL << 30);
  host.mutable_info()->add_trackers(dataplane::v1::TRACKER_PAGEMAP_SCAN);
  host.set_connected(true);
  const std::string text = hosts_table(hosts, 1);
  for (const char* part : {"host-a", "connected", "10.0.0.1", "4 GiB", "pagemap-scan"}) {
    EXPECT_NE(text.find(part), std::string::npos) << part << " in\n" << text;
  }
  EXPECT_EQ(to_json(host)["trackers"], Json({"pagemap-scan"}));

  api::ListImagesResponse images;
  auto& image = *images.add_images();
  image.set_host("host-a");
  image.mutable_image()->mutable_id()->set_vm_uuid(std::string(16, '\x22'));
  EXPECT_NE(images_table(images).find("22222222-2222-2222-2222-222222222222"), std::string::npos);
  EXPECT_NE(images_table(images).find("earlier boot"), std::string::npos);
  image.set_current(true);
  EXPECT_EQ(to_json(image)["current"], true);

  api::ListVmsResponse vms;
  auto& vm = *vms.add_vms();
  vm.set_name("demo");
  vm.set_run_state("running");
  vm.set_migration_id(std::string(16, '\x33'));
  EXPECT_NE(vms_table(vms).find("running, migrating"), std::string::npos);
  EXPECT_EQ(to_json(vm)["host"], "");

  api::ListMigrationsResponse migrations;
  *migrations.add_migrations() = committed();
  EXPECT_NE(migrations_table(migrations).find("12.3 ms"), std::string::npos);
}

TEST(CtlFormat, CertificatesNearTheirEndAreNamed) {
  constexpr std::int64_t kDay_us = 86'400'000'000, kNow_us = 1'000 * kDay_us;
  api::ListHostsResponse response;
  EXPECT_TRUE(certificate_warnings(response, kNow_us).empty()) << "no certificate at all";
  response.set_certificate_end_unix_us(kNow_us + 15 * kDay_us);
  auto& host = *response.add_hosts()->mutable_info();
  host.set_name("host-a");
  host.set_certificate_end_unix_us(kNow_us + 3 * kDay_us);
  auto warnings = certificate_warnings(response, kNow_us);
  ASSERT_EQ(warnings.size(), 1U);
  EXPECT_EQ(warnings[0].find("the certificate of host host-a expires in 3 days ("), 0U) << warnings[0];
  EXPECT_NE(warnings[0].find("`godwitctl pki issue host-a --force`"), std::string::npos);
  warnings = certificate_warnings(response, kNow_us + 16 * kDay_us);
  ASSERT_EQ(warnings.size(), 2U);
  EXPECT_EQ(warnings[0].find("the certificate of the control plane has expired on"), 0U) << warnings[0];
}

}  // namespace
}  // namespace godwit::ctl
