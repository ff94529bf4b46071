// What godwitctl prints: tables, progress, summary, JSON.
#include <gtest/gtest.h>

#include "base/uuid.h"
#include "controlplane/ctl/format.h"
#include "controlplane/ctl/json.h"

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
  api::Migration measured = transferring();
  measured.mutable_stats()->set_rtt_us(310);
  measured.mutable_stats()->set_retransmitted_pages(12);
  EXPECT_TRUE(progress_line(measured, 200).ends_with("about 1.5 s left  round trip 310 us  12 pages resent"));
  api::Migration held_up = transferring();
  held_up.set_note("transferring");
  EXPECT_TRUE(progress_line(held_up, 200).ends_with("about 1.5 s left"));
  held_up.set_note("host-c is full");
  EXPECT_TRUE(progress_line(held_up, 200).ends_with("about 1.5 s left  host-c is full"));
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
  api::Migration measured = committed();
  measured.mutable_stats()->set_rtt_us(310);
  measured.mutable_stats()->set_packets_sent(2000);
  measured.mutable_stats()->set_packets_lost(7);
  EXPECT_EQ(to_json(measured)["stats"]["rtt_us"], 310);
  EXPECT_EQ(to_json(measured)["stats"]["packets_lost"], 7);
  EXPECT_NE(summary(measured).find("7 of 2000 packets lost, 0 timeouts, round trip 310 us"), std::string::npos);
  EXPECT_TRUE(to_json(transferring())["downtime_us"].is_null());
}

api::Migration pulling() {
  api::Migration migration = committed();
  migration.set_state(api::PULLING);
  migration.set_ended(false);
  migration.set_ended_unix_us(0);
  migration.set_connected(true);
  migration.set_note("pulling: 1234 pages (4.8 MiB) still on host-a");
  auto& paging = *migration.mutable_destination_stats()->mutable_paging();
  paging.set_pages_missing(1234);
  paging.set_pages_missing_first(4936);
  paging.set_pages_demand(12);
  paging.set_pages_background(3690);
  paging.set_pages_zero(7);
  paging.set_faults(19);
  paging.set_faults_per_s(77);
  paging.set_fault_p50_us(40);
  paging.set_fault_p90_us(100);
  paging.set_fault_p99_us(900);
  paging.set_fault_p999_us(1'100);
  paging.set_fault_max_us(1'200);
  paging.set_blocked_us(2'500);
  return migration;
}

TEST(CtlFormat, WhilePulling) {
  EXPECT_EQ(
      progress_line(pulling(), 250),
      "[##################......]  75 %  PULLING  1234 pages (4.8 MiB) on host-a  12 on demand, 3690 unasked, 7 "
      "zero, 950 reused  77 faults/s  p50 40 us  p99 900 us  p90 100 us  p99.9 1.1 ms  longest 1.2 ms  vCPUs waited "
      "2.5 ms");
  api::Migration cut = pulling();
  cut.set_connected(false);
  cut.set_note("1234 pages (4.8 MiB) still on host-a; no pages flow: the peer is silent\x1b[2J");
  EXPECT_TRUE(progress_line(cut, 200).starts_with("PULLING  1234 pages (4.8 MiB) still on host-a; no pages flow"));
  EXPECT_EQ(progress_line(cut, 200).find('\x1b'), std::string::npos);
  api::Migration odd = pulling();
  odd.mutable_destination_stats()->mutable_paging()->set_pages_missing(9999);  // never a bar beyond its ends
  EXPECT_NE(progress_line(odd, 200).find("[........................]   0 %"), std::string::npos);
  EXPECT_EQ(downtime_us(pulling()), 12'300);
  api::ListMigrationsResponse migrations;
  *migrations.add_migrations() = pulling();
  for (const char* part : {"PULLING", "12.3 ms", "pulling: 1234 pages (4.8 MiB) still on host-a"}) {
    EXPECT_NE(migrations_table(migrations).find(part), std::string::npos) << migrations_table(migrations);
  }
  const Json json = to_json(pulling());
  EXPECT_EQ(json["state"], "PULLING");
  EXPECT_EQ(json["connected"], true);
  EXPECT_EQ(json["destination_stats"]["paging"]["pages_missing"], 1234);
  EXPECT_EQ(json["destination_stats"]["paging"]["fault_p99_us"], 900);
  EXPECT_TRUE(to_json(committed())["connected"].is_null());
  EXPECT_FALSE(to_json(committed())["destination_stats"].contains("paging"));
}

TEST(CtlFormat, AfterPulling) {
  api::Migration ended = pulling();
  ended.set_state(api::COMMITTED);
  ended.set_ended(true);
  const std::string text = summary(ended);
  for (const char* part :
       {"12 on demand, 3690 unasked, 0 given back of 4936 missing at the resume; 7 zero made there",
        "19, p50 40 us, p90 100 us, p99 900 us, p99.9 1.1 ms, longest 1.2 ms; vCPUs waited 2.5 ms"}) {
    EXPECT_NE(text.find(part), std::string::npos) << part << " in\n" << text;
  }
  EXPECT_EQ(summary(committed()).find("faults"), std::string::npos);
  ended.set_state(api::INCOMPLETE);
  ended.set_reason("the VM was stopped before it had 1 page (4 KiB) of host-a");
  EXPECT_TRUE(
      summary(ended).ends_with("moved, but not whole: the VM was stopped before it had 1 page (4 KiB) of host-a\n"));
}

TEST(CtlFormat, VmsThatDependOnAHost) {
  api::ListVmsResponse vms;
  auto& vm = *vms.add_vms();
  vm.set_name("demo");
  vm.set_run_state("running");
  vm.set_migration_id(std::string(16, '\x33'));
  vm.set_depends_on("host-a");
  vm.mutable_paging()->set_connected(true);
  *vm.mutable_paging()->mutable_stats() = pulling().destination_stats().paging();
  EXPECT_NE(vms_table(vms).find("running, pulling"), std::string::npos) << vms_table(vms);
  EXPECT_NE(vms_table(vms).find("host-a: 1234 pages (4.8 MiB), 77 faults/s  p50 40 us  p99 900 us"), std::string::npos)
      << vms_table(vms);
  EXPECT_EQ(to_json(vm)["depends_on"], "host-a");
  EXPECT_EQ(to_json(vm)["paging"]["pages_demand"], 12);
  vm.mutable_paging()->set_connected(false);
  EXPECT_NE(vms_table(vms).find("host-a: 1234 pages (4.8 MiB), no pages flow"), std::string::npos) << vms_table(vms);
  auto& sub = *vm.mutable_split()->add_subs();  // its main part has moved, and its sub hosts keep the rest
  sub.set_host("host-b");
  sub.set_pages(2);
  EXPECT_NE(vms_table(vms).find("host-b: 2 pages (8 KiB); host-a: 1234 pages (4.8 MiB)"), std::string::npos)
      << vms_table(vms);
  EXPECT_NE(vm_text(vm).find("1234 pages (4.8 MiB), from where it comes"), std::string::npos) << vm_text(vm);
  vm.clear_split();
  vm.clear_depends_on();
  EXPECT_TRUE(to_json(vm)["paging"].is_null());
  EXPECT_EQ(vm_text(vm).find("to be split"), std::string::npos) << vm_text(vm);
  vm.set_to_be_split("not yet: host-c is full");
  EXPECT_NE(vm_text(vm).find("to be split  not yet: host-c is full"), std::string::npos) << vm_text(vm);
  EXPECT_EQ(to_json(vm)["to_be_split"], "not yet: host-c is full");
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
