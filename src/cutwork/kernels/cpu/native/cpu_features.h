// What this CPU and its operating system can run.

#pragma once

#include <string>
#include <vector>

// The instruction sets that the CPU has and the operating system lets programs use, by their names in /proc/cpuinfo.
std::vector<std::string> features();
