#define RANVIER_LINEAR linear_bf16
#include "linear_body.h"
