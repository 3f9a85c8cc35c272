package abi

import "fmt"

// MicroUSD is money: millionths of a United States dollar. Prices per unit are
// kept finer, in PicoUSD, and rounded up once.
type MicroUSD int64

// USD is one dollar.
const USD MicroUSD = 1_000_000

// String gives dollars with at least two and at most six decimals.
func (m MicroUSD) String() string {
	sign, u := "", uint64(m)
	if m < 0 {
		sign, u = "-", -u // right for the smallest value, too
	}
	cents := fmt.Sprintf("%s$%d.%06d", sign, u/uint64(USD), u%uint64(USD))
	for i := 0; i < 4 && cents[len(cents)-1] == '0'; i++ {
		cents = cents[:len(cents)-1]
	}
	return cents
}

// PicoUSD is a price per unit: 10^-12 of a dollar, 10^-6 of a MicroUSD.
type PicoUSD int64

// Times returns the price of n units, rounded up. It saturates instead of
// overflowing, so that an absurd count is refused by the cap.
func (p PicoUSD) Times(n int64) MicroUSD {
	const most = 1<<63 - 1
	if p <= 0 || n <= 0 {
		return 0
	}
	if int64(p) > (most-999_999)/n {
		return most / 1_000_000
	}
	return MicroUSD((int64(p)*n + 999_999) / 1_000_000)
}
