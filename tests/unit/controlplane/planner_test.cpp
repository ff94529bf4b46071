// The planner, row by row: what is refused and why, which image is reused and why.
#include "controlplane/planner/planner.h"

#include <gtest/gtest.h>

#include <functional>
#include <span>

namespace godwit::controlplane {
namespace {

constexpr std::uint64_t kGiB = 1ULL << 30;

struct World {
  api::Plan plan;
  VmRecord vm;
  HostView source, destination;
  bool vm_known = true, source_known = true, destination_known = true;
  std::optional<Id128> active;
  std::optional<MigrationRecord> pulling;
  std::uint64_t lent_bytes = 0;

  World() {
    plan.set_vm("demo");
    plan.set_destination("host-b");
    vm.uuid = Id128::random();
    vm.image_id = Id128::random();
    vm.name = "demo";
    vm.host = "host-a";
    vm.ownership = 1;
    add_region("tmpfs", kGiB);
    api::RunningVm running;
    running.set_uuid(vm.uuid.to_bytes());
    source.vms.push_back(running);
    for (HostView* host : {&source, &destination}) {
      host->connected = true;
      host->info.set_dataplane_up(true);
      host->info.set_memory_free_bytes(2 * kGiB);
      host->info.add_trackers(dpapi::TRACKER_HASHES);
    }
  }
  void add_region(const char* backing, std::uint64_t bytes) {
    auto& region = *vm.definition.add_regions();
    region.set_name("ram" + std::to_string(vm.definition.regions_size()));
    region.set_backing(backing);
    region.set_bytes(bytes);
  }
  dpapi::Image& add_image(const Id128& uuid, const Id128& image_id, std::uint64_t bytes_total) {
    dpapi::Image& image = destination.images.emplace_back();
    image.mutable_id()->set_vm_uuid(uuid.to_bytes());
    image.mutable_id()->set_image_id(image_id.to_bytes());
    image.set_bytes_total(bytes_total);
    image.set_bytes_resident(bytes_total);
    image.set_epoch(5);
    return image;
  }
  void set_pulling() {
    active = Id128::random();
    pulling.emplace();
    pulling->id = *active;
    pulling->source = "host-z";
    pulling->destination_stats.mutable_paging()->set_pages_missing(1234);
  }
  [[nodiscard]] std::expected<ReuseDecision, Refused> ask() const {
    return plan_migration({.plan = plan,
                           .vm = vm_known ? &vm : nullptr,
                           .source = source_known ? &source : nullptr,
                           .destination = destination_known ? &destination : nullptr,
                           .active_migration = active,
                           .pulling = pulling ? &*pulling : nullptr,
                           .lent_bytes = lent_bytes});
  }
};

struct RefusalRow {
  const char* what;
  std::function<void(World&)> change;
  Refusal refusal;
  const char* text;
};

void expect_refused(std::span<const RefusalRow> rows) {
  for (const auto& row : rows) {
    World world;
    row.change(world);
    const auto answer = world.ask();
    ASSERT_FALSE(answer.has_value()) << row.what;
    EXPECT_EQ(answer.error().refusal, row.refusal) << row.what;
    EXPECT_NE(answer.error().text.find(row.text), std::string::npos) << row.what << ": " << answer.error().text;
  }
}

TEST(Planner, Refusals) {
  const RefusalRow rows[] = {
      {"unknown VM", [](World& w) { w.vm_known = false; }, Refusal::kUnknownVm, "no VM \"demo\""},
      {"stopped", [](World& w) { w.vm.host.clear(); }, Refusal::kNotRunning, "runs nowhere"},
      {"exited by itself", [](World& w) { w.source.vms.clear(); }, Refusal::kNotRunning, "does not run any more"},
      {"unknown host", [](World& w) { w.destination_known = false; }, Refusal::kUnknownHost, "host-b"},
      {"same host", [](World& w) { w.plan.set_destination("host-a"); }, Refusal::kSameHost, "already"},
      {"source away", [](World& w) { w.source.connected = false; }, Refusal::kSourceGone, "host-a"},
      {"source unknown", [](World& w) { w.source_known = false; }, Refusal::kSourceGone, "host-a"},
      {"source data plane", [](World& w) { w.source.info.set_dataplane_up(false); }, Refusal::kSourceGone,
       "data plane"},
      {"destination away", [](World& w) { w.destination.connected = false; }, Refusal::kDestinationGone, "host-b"},
      {"destination data plane", [](World& w) { w.destination.info.set_dataplane_up(false); },
       Refusal::kDestinationGone, "data plane of host-b"},
      {"under way", [](World& w) { w.active = Id128::random(); }, Refusal::kMigrationActive, "already"},
      {"rounds", [](World& w) { w.plan.set_rounds_max(1001); }, Refusal::kBadPlan, "rounds_max"},
      {"downtime", [](World& w) { w.plan.set_downtime_limit_us(UINT64_MAX); }, Refusal::kBadPlan, "downtime_limit"},
      {"verify of the future", [](World& w) { w.plan.set_verify(static_cast<dpapi::Verify>(7)); }, Refusal::kBadPlan,
       "does not know"},
      {"tracker", [](World& w) { w.vm.tracker = dpapi::TRACKER_PAGEMAP_SCAN; }, Refusal::kTrackerNotOffered,
       "pagemap-scan"},
      {"held there", [](World& w) { w.destination.vms = w.source.vms; }, Refusal::kVmAtDestination, "still holds"},
      {"reuse required", [](World& w) { w.plan.set_reuse(api::REUSE_REQUIRE); }, Refusal::kNoReusableImage,
       "no image of this VM"},
      {"a sub host twice",
       [](World& w) {
         w.plan.add_sub_hosts("host-c");
         w.plan.add_sub_hosts("host-c");
       },
       Refusal::kBadPlan, "twice"},
      {"whole, with a budget",
       [](World& w) {
         w.plan.set_whole(true);
         w.plan.set_resident_budget_bytes(kGiB);
       },
       Refusal::kBadPlan, "no budget"},
      {"memory that it lends is not enough",
       [](World& w) {
         w.destination.info.set_memory_free_bytes(0);
         w.lent_bytes = kGiB - 1;
       },
       Refusal::kNotEnoughMemory, "not enough memory"},
      {"memory", [](World& w) { w.destination.info.set_memory_free_bytes(kGiB - 1); }, Refusal::kNotEnoughMemory,
       "not enough memory"},
      {"image in use makes no room",
       [](World& w) {
         w.destination.info.set_memory_free_bytes(0);
         w.add_image(Id128::random(), Id128::random(), kGiB).set_in_use(true);
       },
       Refusal::kNotEnoughMemory, "not enough memory"},
      {"hugepages", [](World& w) { w.add_region("hugetlbfs", 2U << 20); }, Refusal::kNotEnoughMemory, "hugepages"},
  };
  expect_refused(rows);
}

TEST(Planner, PostcopyRefusals) {
  const RefusalRow rows[] = {
      {"post-copy", [](World& w) { w.plan.set_mode(dpapi::POSTCOPY); }, Refusal::kModeNotAvailable,
       "host-b cannot be the destination of post-copy: its data plane does not offer it; or use mode precopy"},
      {"hybrid",
       [](World& w) {
         w.plan.set_mode(dpapi::HYBRID);
         w.destination.info.set_postcopy_refusal("kernel 5.4 is too old: 5.11 is needed");
       },
       Refusal::kModeNotAvailable, "kernel 5.4 is too old: 5.11 is needed; or use mode precopy"},
      {"mode of the future", [](World& w) { w.plan.set_mode(static_cast<dpapi::Mode>(9)); }, Refusal::kModeNotAvailable,
       "does not know"},
      {"order of the future", [](World& w) { w.plan.set_background_order(static_cast<dpapi::BackgroundOrder>(9)); },
       Refusal::kModeNotAvailable, "does not know"},
      {"to post-copy", [](World& w) { w.plan.set_on_no_convergence(dpapi::NO_CONVERGENCE_POSTCOPY); },
       Refusal::kModeNotAvailable, "or set on_no_convergence to abort or stop-anyway"},
      {"when to switch, without hybrid", [](World& w) { w.plan.set_postcopy_after_rounds(1); }, Refusal::kBadPlan,
       "for mode hybrid only"},
      {"pulling", [](World& w) { w.set_pulling(); }, Refusal::kPagesMissing,
       "VM \"demo\" still needs 1234 pages (4.8 MiB) that only host-z holds (migration "},
      {"image that serves makes no room",
       [](World& w) {
         w.destination.info.set_memory_free_bytes(0);
         w.add_image(Id128::random(), Id128::random(), kGiB).set_serving_migration_id("x");
       },
       Refusal::kNotEnoughMemory, "not enough memory"},
      {"image that serves, by its bridge",
       [](World& w) {
         w.destination.info.set_memory_free_bytes(0);
         const Id128 other = Id128::random();
         w.add_image(other, Id128::random(), kGiB);
         auto& serving = w.destination.vms.emplace_back();
         serving.set_uuid(other.to_bytes());
         serving.set_role(dpapi::ROLE_SOURCE);
         serving.mutable_paging();
       },
       Refusal::kNotEnoughMemory, "not enough memory"},
  };
  expect_refused(rows);
}

TEST(Planner, EnoughMemory) {
  World plain;
  plain.destination.info.set_memory_free_bytes(kGiB);
  EXPECT_TRUE(plain.ask().has_value());
  World reusing;
  reusing.destination.info.set_memory_free_bytes(0);
  reusing.add_image(reusing.vm.uuid, reusing.vm.image_id, kGiB);
  EXPECT_TRUE(reusing.ask().value().reuse);
  World dropping;
  dropping.destination.info.set_memory_free_bytes(0);
  dropping.add_image(Id128::random(), Id128::random(), kGiB);
  EXPECT_TRUE(dropping.ask().has_value());
  World tracked;
  tracked.vm.tracker = dpapi::TRACKER_HASHES;
  EXPECT_TRUE(tracked.ask().has_value());
  World lends;
  lends.destination.info.set_memory_free_bytes(0);
  lends.lent_bytes = kGiB;
  EXPECT_TRUE(lends.ask().has_value()) << "what it lends to the VM is free when that comes";
}

TEST(Planner, OfAMainPartTheBudgetIsEnough) {
  World world;
  world.plan.set_resident_budget_bytes(kGiB / 2);
  world.plan.set_mode(dpapi::HYBRID);
  world.destination.info.set_postcopy(true);
  world.destination.info.set_memory_free_bytes(kGiB / 2);
  EXPECT_FALSE(world.ask().has_value()) << "all of it";
  world.plan.set_keeps_stores(true);
  EXPECT_TRUE(world.ask().has_value());
  world.add_image(world.vm.uuid, world.vm.image_id, kGiB).set_bytes_resident(kGiB / 2 + 4096);
  EXPECT_FALSE(world.ask().value().reuse) << "more than the budget";
  world.destination.images[0].set_bytes_resident(kGiB / 2);
  EXPECT_TRUE(world.ask().value().reuse);
  world.destination.images.clear();
  world.destination.info.set_memory_free_bytes(kGiB / 2 - 4096);
  EXPECT_FALSE(world.ask().has_value());
  world.destination.info.set_memory_free_bytes(kGiB / 2);
  world.plan.set_resident_budget_bytes(0);
  world.plan.set_whole(true);
  EXPECT_FALSE(world.ask().has_value()) << "it is to be whole there";
}

TEST(Planner, ReuseDecisions) {
  const struct {
    const char* what;
    std::function<void(World&)> change;
    bool reuse;
    const char* reason;
  } rows[] = {
      {"nothing there", [](World&) {}, false, "no image of this VM"},
      {"another VM's", [](World& w) { w.add_image(Id128::random(), w.vm.image_id, kGiB); }, false,
       "no image of this VM"},
      {"fits", [](World& w) { w.add_image(w.vm.uuid, w.vm.image_id, kGiB); }, true, "retained image of epoch 5"},
      {"earlier boot", [](World& w) { w.add_image(w.vm.uuid, Id128::random(), kGiB); }, false, "earlier boot"},
      {"in use", [](World& w) { w.add_image(w.vm.uuid, w.vm.image_id, kGiB).set_in_use(true); }, false, "in use"},
      {"other size", [](World& w) { w.add_image(w.vm.uuid, w.vm.image_id, 2 * kGiB); }, false, "the VM has 1 GiB"},
      {"never",
       [](World& w) {
         w.add_image(w.vm.uuid, w.vm.image_id, kGiB);
         w.plan.set_reuse(api::REUSE_NEVER);
       },
       false, "the plan says never"},
      {"newest of two",
       [](World& w) {
         w.add_image(w.vm.uuid, w.vm.image_id, kGiB).set_epoch(9);
         w.add_image(w.vm.uuid, w.vm.image_id, kGiB);
       },
       true, "epoch 9"},
  };
  for (const auto& row : rows) {
    World world;
    row.change(world);
    const auto answer = world.ask();
    ASSERT_TRUE(answer.has_value()) << row.what << ": " << answer.error().text;
    EXPECT_EQ(answer->reuse, row.reuse) << row.what;
    EXPECT_EQ(answer->image_id, row.reuse ? world.vm.image_id.to_bytes() : "") << row.what;
    EXPECT_NE(answer->reason.find(row.reason), std::string::npos) << row.what << ": " << answer->reason;
  }
}

TEST(Planner, DefinitionMistakes) {
  const auto good = [] {
    api::VmDefinition definition;
    definition.set_name("demo");
    definition.set_uuid(Id128::random().to_bytes());
    definition.set_vcpus(1);
    auto& region = *definition.add_regions();
    region.set_name("ram0");
    region.set_backing("hugetlbfs");
    region.set_bytes(2U << 20);
    return definition;
  };
  EXPECT_FALSE(definition_mistake(good()).has_value());
  const std::pair<const char*, std::function<void(api::VmDefinition&)>> rows[] = {
      {"name", [](auto& d) { d.set_name(""); }},
      {"name", [](auto& d) { d.set_name("../etc"); }},
      {"name", [](auto& d) { d.set_name("a\nb"); }},
      {"name", [](auto& d) { d.set_name(Id128::random().text()); }},
      {"uuid", [](auto& d) { d.set_uuid("short"); }},
      {"uuid", [](auto& d) { d.set_uuid(std::string(16, '\0')); }},
      {"vcpus", [](auto& d) { d.set_vcpus(0); }},
      {"region", [](auto& d) { d.clear_regions(); }},
      {"backing", [](auto& d) { d.mutable_regions(0)->set_backing("swap"); }},
      {"bytes", [](auto& d) { d.mutable_regions(0)->set_bytes(4096); }},
      {"bytes", [](auto& d) { d.mutable_regions(0)->set_bytes(UINT64_MAX << 21); }},
      {"name of its own", [](auto& d) { *d.add_regions() = d.regions(0); }},
  };
  for (const auto& [text, change] : rows) {
    api::VmDefinition definition = good();
    change(definition);
    const auto mistake = definition_mistake(definition);
    ASSERT_TRUE(mistake.has_value()) << text;
    EXPECT_NE(mistake->find(text), std::string::npos) << *mistake;
  }
}

TEST(Planner, ModesThatTheDestinationOffers) {
  for (const dpapi::Mode mode : {dpapi::POSTCOPY, dpapi::HYBRID}) {
    World world;
    world.plan.set_mode(mode);
    world.destination.info.set_postcopy(true);
    EXPECT_TRUE(world.ask().has_value()) << mode;
    EXPECT_EQ(mode_of(world.plan), mode);
    EXPECT_EQ(policy_of(world.plan).mode(), mode);
  }
  World falling_back;
  falling_back.plan.set_on_no_convergence(dpapi::NO_CONVERGENCE_POSTCOPY);
  falling_back.destination.info.set_postcopy(true);
  EXPECT_TRUE(falling_back.ask().has_value());
  EXPECT_EQ(mode_of(falling_back.plan), dpapi::HYBRID) << "both ends must be ready for it";
  EXPECT_EQ(policy_of(falling_back.plan).postcopy_after_rounds(), 0U) << "only where it does not converge";
  EXPECT_EQ(mode_of(World().plan), dpapi::PRECOPY);
}

TEST(Planner, PolicyDefaults) {
  api::Plan plan;
  EXPECT_EQ(policy_of(plan).downtime_limit_us(), 300'000U);
  EXPECT_EQ(policy_of(plan).rounds_max(), 30U);
  plan.set_downtime_limit_us(5);
  plan.set_rounds_max(2);
  plan.set_bandwidth_limit_bps(7);
  EXPECT_EQ(policy_of(plan).downtime_limit_us(), 5U);
  EXPECT_EQ(policy_of(plan).rounds_max(), 2U);
  EXPECT_EQ(policy_of(plan).bandwidth_limit_bps(), 7U);
}

}  // namespace
}  // namespace godwit::controlplane
