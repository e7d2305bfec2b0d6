#pragma once

#include <nanobind/nanobind.h>

void bind_tiles(nanobind::module_ &module);
void bind_conv(nanobind::module_ &module);
