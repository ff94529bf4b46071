#pragma once
// The figures of `transport` that come from simulation: loss, and two flows on one link. Virtual time, so the same on
// every machine; a few seconds. No failure.

#include "perf/benchmark.h"

namespace godwit::perf {

/// ratios.goodput_loss_0_1, goodput_loss_1, goodput_loss_5: goodput at a loss of so many percent against none.
/// metrics.jain: of two flows, the second of which comes when the first has the link.
void report_simulated(const Options& options, Result& result);

}  // namespace godwit::perf
