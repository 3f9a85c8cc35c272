// Command scanner is a plugin as a third party would write it: it finds numbers that
// pass the check of payment cards.
package main

import "github.com/getmonroe/monroe/connectors/plugin"

func main() { plugin.ServeScanner(cards{}) }

type cards struct{}

func (cards) Findings() []string { return []string{"card_number"} }

// Scan looks for 13 to 19 digits, between which spaces and dashes may stand, that
// fulfil Luhn's rule.
func (cards) Scan(c plugin.Content) (string, error) {
	var digits []int
	for _, b := range append(c.Bytes, '.') {
		switch {
		case b >= '0' && b <= '9':
			digits = append(digits, int(b-'0'))
		case len(digits) > 0 && (b == ' ' || b == '-'):
		default:
			if len(digits) >= 13 && len(digits) <= 19 && luhn(digits) {
				return "card_number", nil
			}
			digits = digits[:0]
		}
	}
	return "", nil
}

func luhn(digits []int) bool {
	sum := 0
	for i := range digits {
		d := digits[len(digits)-1-i]
		if i%2 == 1 {
			if d *= 2; d > 9 {
				d -= 9
			}
		}
		sum += d
	}
	return sum%10 == 0
}
