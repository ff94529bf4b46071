// godwit-dataplane: reads its configuration, opens port and local socket, starts the lcore, serves the bridge until
// SIGTERM. Exit status: 0 asked to end, 1 could not start, 2 configuration unreadable.

#include <spdlog/spdlog.h>
#include <sys/stat.h>
#include <sys/vfs.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <memory>
#include <string>

#include "base/log.h"
#include "base/uuid.h"
#include "config/daemon_command.h"
#include "config/dataplane_config.h"
#include "dataplane/daemon/control_loop.h"
#include "dataplane/daemon/control_socket.h"
#include "dataplane/daemon/data_path.h"
#include "dataplane/daemon/metrics.h"
#include "dataplane/daemon/service.h"
#include "dataplane/daemon/settings.h"
#include "dataplane/daemon/telemetry.h"
#include "dataplane/memory/retained_image.h"
#include "dataplane/port/doorbell.h"
#include "dataplane/port/environment.h"
#include "dataplane/port/ingress_filter.h"
#include "dataplane/port/poll_loop.h"
#include "dataplane/port/port.h"
#include "metrics/endpoint.h"

namespace godwit::daemon {
namespace {

int fail(const std::string& text) {
  spdlog::error("{}", text);
  return 1;
}

std::expected<std::unique_ptr<Images>, std::string> open_images(const std::string& directory,
                                                                std::uint64_t budget_bytes) {
  const auto boot_id = memory::read_boot_id();
  if (!boot_id) {
    return std::unexpected(boot_id.error().text);
  }
  auto store = memory::ImageStore::open(directory, budget_bytes, *boot_id);
  if (!store) {
    return std::unexpected(store.error().text);
  }
  for (const memory::UnusableImage& image : store->unusable()) {
    spdlog::warn("retained image {} cannot be used: {}", image.file, image.refused.text);
  }
  return std::make_unique<Images>(std::move(*store));
}

std::expected<port::Doorbell, std::string> open_doorbell(port::Port& port, std::uint16_t queue) {
  auto doorbell = port::Doorbell::open();
  if (!doorbell) {
    return std::unexpected(doorbell.error().text);
  }
  if (const int interrupt = port.receive_interrupt(queue); interrupt >= 0) {
    if (auto watched = doorbell->watch_descriptor(interrupt); !watched) {
      return std::unexpected(watched.error().text);
    }
  }
  return std::move(*doorbell);
}

/// One lcore with its queue.
struct Lcore {
  Lcore(unsigned lcore_number, port::Doorbell bell, const config::DataplaneConfig& config,
        const port::NeighboursOptions& neighbours, port::Port& port, std::uint16_t queue)
      : number(lcore_number),
        doorbell(std::move(bell)),
        data_path(port.queue(queue),
                  {.neighbours = neighbours,
                   .udp_port = config.port.udp_port,
                   .wake = [this] { doorbell.kick(); },
                   .on_sleeping = [&port, queue](bool asleep) { port.enable_receive_interrupt(queue, asleep); },
                   .watch = [this](int descriptor, bool watched) { watch(descriptor, watched); }}),
        loop(data_path, doorbell, idle_options(config, doorbell.watches_frames())) {}
  void watch(int descriptor, bool watched) {
    if (!watched) {
      return doorbell.unwatch(descriptor);
    }
    if (const auto added = doorbell.watch_while_readable(descriptor); !added) {
      spdlog::error("faults of a guest are seen late: {}", added.error().text);
    }
  }
  const unsigned number;
  port::Doorbell doorbell;
  DataPath data_path;
  port::PollLoop loop;
};
using Lcores = std::vector<std::unique_ptr<Lcore>>;  // the first is the home lcore

std::expected<Lcores, std::string> make_lcores(const config::DataplaneConfig& config, const Settings& settings,
                                               const port::NeighboursOptions& neighbours, port::Port& port) {
  Lcores lcores;
  std::vector<DataPath*> paths;
  for (const port::LcoreOptions& options : settings.environment.lcores) {
    const auto queue = static_cast<std::uint16_t>(lcores.size());
    auto doorbell = open_doorbell(port, queue);
    if (!doorbell) {
      return std::unexpected(doorbell.error());
    }
    lcores.push_back(std::make_unique<Lcore>(options.lcore, std::move(*doorbell), config, neighbours, port, queue));
    paths.push_back(&lcores.back()->data_path);
  }
  for (DataPath* path : paths) {
    path->join(paths);
  }
  return lcores;
}

/// Only where the interface is the kernel's too.
std::optional<port::IngressFilter> filter_ingress(const Settings& settings, std::uint16_t udp_port) {
  if (settings.port.driver != port::Driver::kAfPacket) {
    return std::nullopt;
  }
  std::vector<wire::IpAddress> addresses;
  for (const port::LocalAddress& local : settings.neighbours.addresses) {
    addresses.push_back(local.address);
  }
  auto filter = port::IngressFilter::attach(settings.port.interface, addresses, udp_port);
  if (!filter) {
    spdlog::info("the kernel looks at our packets on {} too, which costs processor time: {}", settings.port.interface,
                 filter.error().text);
    return std::nullopt;
  }
  return std::move(*filter);
}

/// How this daemon shows what it counts; goes before what it shows.
struct Shown {
  std::vector<port::Publication> telemetry;
  std::unique_ptr<metrics::Endpoint> endpoint;
};

std::expected<Shown, std::string> show(const config::DataplaneConfig& config, const MetricSources& sources) {
  Shown shown;
  if (config.telemetry.dpdk) {
    shown.telemetry = publish_telemetry(sources.lcores, sources.port, sources.figures);
  }
  auto opened = metrics::Endpoint::open(config.metrics.listen, [&sources] { return read_metrics(sources); });
  if (!opened) {
    return std::unexpected(opened.error());
  }
  shown.endpoint = std::move(*opened);
  return shown;
}

/// What peers are told of our queues.
std::optional<wire::ReceiveSpread> receive_spread_of(const port::Port& port, const Settings& settings) {
  const auto address = wire::parse_ip_address(settings.service.address);
  auto spread = address ? port.receive_spread(address->family) : std::nullopt;
  if (!spread && settings.port.driver == port::Driver::kPci && settings.port.queues > 1) {
    spdlog::warn(
        "the port's driver does not spread UDP over its queues by a hash that it tells: frames are handed over "
        "from lcore to lcore");
  }
  return spread;
}

int run(const config::DataplaneConfig& config) {
  const Settings settings = make_settings(config);
  for (const std::filesystem::path& directory : {config.run_dir, std::filesystem::path(settings.image_dir)}) {
    std::error_code error;
    std::filesystem::create_directories(directory, error);
    if (error) {
      return fail("directory " + directory.string() + ": " + error.message());
    }
  }
  auto images = open_images(settings.image_dir, config.memory_budget_bytes);
  if (!images) {
    return fail(images.error());
  }
  auto socket = ControlSocket::listen({.path = config.control_socket.string(), .group = {}});
  if (!socket) {
    return fail(socket.error());
  }
  LivePaging::remove_unfinished_files(settings.service.missing_dir);  // no other daemon is there
  auto control = ControlLoop::open(std::move(*socket));
  if (!control) {
    return fail(control.error());
  }
  auto environment = port::Environment::start(settings.environment);
  if (!environment) {
    return fail(environment.error().text);
  }
  auto port = port::Port::open(settings.port);
  if (!port) {
    return fail(port.error().text);
  }
  const auto ingress_filter = filter_ingress(settings, config.port.udp_port);
  port::NeighboursOptions neighbours = settings.neighbours;
  neighbours.mac = wire::MacAddress{(*port)->mac()};
  auto lcores = make_lcores(config, settings, neighbours, **port);
  if (!lcores) {
    return fail(lcores.error());
  }
  Inbox inbox(control->waker());
  ServiceOptions service_options = settings.service;
  service_options.receive_spread = receive_spread_of(**port, settings);
  service_options.takes_super_frames = (*port)->takes_super_frames();
  service_options.lender = port->get();
  Service service(
      std::move(service_options), **images, inbox, (*lcores)[0]->data_path,
      [&](const api::Event& event) { control->emit(event); }, [&](int pidfd) { control->watch_process(pidfd); });
  std::vector<LcoreFigures> figures;
  for (const auto& lcore : *lcores) {
    figures.push_back({&lcore->data_path, &lcore->loop});
  }
  const MetricSources sources{figures, **port, service.figures(), config.memory_budget_bytes};
  auto shown = show(config, sources);
  if (!shown) {
    return fail(shown.error());
  }
  for (const auto& lcore : *lcores) {
    environment->launch(lcore->number, [&loop = lcore->loop] { loop.run(); });
  }
  spdlog::info("ready: {} port {}, MAC {}, control socket {}", settings.service.address, config.port.udp_port,
               wire::to_string(neighbours.mac), config.control_socket.string());
  control->run(service, inbox);
  shown->endpoint.reset();  // takes a while, in which guests' writes are still heard of
  for (const auto& lcore : *lcores) {
    lcore->loop.stop();
  }
  for (const auto& lcore : *lcores) {
    environment->wait(lcore->number);
  }
  return 0;
}

}  // namespace
}  // namespace godwit::daemon

int main(int argc, char** argv) {
  const auto config = godwit::config::daemon_config(
      argc, argv, {"godwit-dataplane: moves guest memory between hosts over DPDK", "/etc/godwit/dataplane.toml"},
      &godwit::config::load_dataplane_config);
  if (!config) {
    return config.error();
  }
  godwit::start_logging("godwit-dataplane", config->log.level);
  umask(0066);  // as the bridge has it: of RAM directories, whoever comes first is the one that makes them
  return godwit::daemon::run(*config);
}
