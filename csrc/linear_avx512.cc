#define RANVIER_LINEAR linear_avx512
#include "linear_body.h"
