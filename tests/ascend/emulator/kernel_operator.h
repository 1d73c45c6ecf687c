#pragma once

/// Stands in for CANN's header of this name where a kernel is run on the emulator.
#include "tests/ascend/emulator/cube.h"
