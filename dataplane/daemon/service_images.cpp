// The requests about retained images. They read and write files, so they run on a worker of their own.

#include <utility>

#include "dataplane/daemon/service.h"

namespace godwit::daemon {
namespace {

ApiError from_memory(const memory::Error& error) { return {to_api(error.code), error.text}; }

void add_image(const memory::ImageSummary& summary, api::ListImagesResult& result) {
  api::Image& image = *result.add_images();
  image.mutable_id()->set_vm_uuid(from_memory_id(summary.vm_uuid).to_bytes());
  image.mutable_id()->set_image_id(from_memory_id(summary.image_id).to_bytes());
  image.set_epoch(summary.epoch);
  image.set_bytes_resident(summary.bytes_resident);
  image.set_bytes_total(summary.bytes_total);
  image.set_pages_known(summary.pages_known);
  image.set_last_used_unix_s(summary.last_used_ns / 1'000'000'000);
  image.set_in_use(summary.in_use);
  for (const std::string& path : summary.ram_paths) {
    image.add_ram_paths(path);
  }
}

/// Runs `work` on the worker and answers with what it returns.
void answer_from(Worker& worker, Inbox& control, std::function<api::Reply()> work, const Service::Respond& respond) {
  auto reply = std::make_shared<api::Reply>();
  worker.submit([reply, work = std::move(work)] { *reply = work(); }, control,
                [reply, respond] { respond(std::move(*reply)); });
}

}  // namespace

void Service::list_images(const Respond& respond) {
  answer_from(
      *disk_, control_,
      [this, guests = guest_bytes()] {
        const std::lock_guard lock(images_.mutex);
        const auto images = images_.store.list();
        if (!images) {
          return refusal(from_memory(images.error()));
        }
        api::Reply reply;
        std::uint64_t used = guests;
        ImageFigures kept;
        for (const memory::ImageSummary& image : *images) {
          add_image(image, *reply.mutable_list_images());
          if (!image.in_use) {  // in use: counted as its guest
            used += image.bytes_resident;
            kept.bytes_resident += image.bytes_resident;
            ++kept.count;
          }
        }
        figures_.set_images(kept);
        reply.mutable_list_images()->set_budget_bytes(images_.store.budget_bytes());
        reply.mutable_list_images()->set_used_bytes(used);
        return reply;
      },
      respond);
}

void Service::drop_image(const api::DropImage& request, const Respond& respond) {
  const auto vm = parse_id(request.id().vm_uuid(), "DropImage: id.vm_uuid");
  const auto image = parse_id(request.id().image_id(), "DropImage: id.image_id");
  if (!vm || !image) {
    respond(refusal(!vm ? vm.error() : image.error()));
    return;
  }
  answer_from(
      *disk_, control_,
      [this, vm = *vm, image = *image] {
        const std::lock_guard lock(images_.mutex);
        const auto images = images_.store.list();
        if (!images) {
          return refusal(from_memory(images.error()));
        }
        for (const memory::ImageSummary& summary : *images) {
          if (from_memory_id(summary.vm_uuid) != vm || from_memory_id(summary.image_id) != image) {
            continue;
          }
          const auto dropped = images_.store.drop(summary.vm_uuid);
          return dropped ? api::Reply() : refusal(from_memory(dropped.error()));
        }
        return api::Reply();  // asked again
      },
      respond);
}

void Service::make_room(const api::MakeRoom& request, const Respond& respond) {
  std::optional<memory::Id> keep;
  if (!request.keep_vm_uuid().empty()) {
    const auto vm = parse_id(request.keep_vm_uuid(), "MakeRoom: keep_vm_uuid");
    if (!vm) {
      respond(refusal(vm.error()));
      return;
    }
    keep = to_memory_id(*vm);
  }
  answer_from(
      *disk_, control_,
      [this, bytes = request.bytes(), guests = guest_bytes(), keep] {
        const std::lock_guard lock(images_.mutex);
        const std::uint64_t budget = images_.store.budget_bytes();
        if (budget != 0 && (bytes > budget || guests > budget - bytes)) {
          return refusal({api::Error::NO_MEMORY, "MakeRoom: " + std::to_string(bytes) +
                                                     " bytes do not fit: of the budget of " + std::to_string(budget) +
                                                     " running guests have " + std::to_string(guests) +
                                                     "; raise memory_budget or choose another host"});
        }
        const auto made = images_.store.make_room(budget != 0 ? bytes + guests : bytes, keep);
        if (!made) {
          return refusal(from_memory(made.error()));
        }
        if (budget != 0 && made->used_bytes + bytes + guests > budget) {
          return refusal({api::Error::NO_MEMORY, "MakeRoom: images that may not be dropped hold " +
                                                     std::to_string(made->used_bytes) + " of the budget of " +
                                                     std::to_string(budget) + " bytes"});
        }
        return api::Reply();
      },
      respond);
}

}  // namespace godwit::daemon
