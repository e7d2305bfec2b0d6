#pragma once

#include <nanobind/nanobind.h>

void bind_narrow(nanobind::module_ &module);
