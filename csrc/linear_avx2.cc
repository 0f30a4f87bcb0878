#define RANVIER_LINEAR linear_avx2
#include "linear_body.h"
