package batchnorm

import (
	"errors"
	"fmt"
	"strings"
)

// The kinds of error that the package returns, for [errors.Is]. The message names the
// argument and the numbers that disagree. An error is returned before anything is
// written.
var (
	ErrShape        = errors.New("batchnorm: invalid shape")
	ErrOption       = errors.New("batchnorm: invalid option")
	ErrState        = errors.New("batchnorm: invalid saved state")
	ErrNoForward    = errors.New("batchnorm: Backward without Forward")
	ErrNilLayer     = errors.New("batchnorm: layer is nil or was not made by NewLayer")
	ErrNilPlan      = errors.New("batchnorm: plan is nil or was not made by NewPlan")
	ErrLength       = errors.New("batchnorm: wrong length")
	ErrMissing      = errors.New("batchnorm: missing argument")
	ErrAlias        = errors.New("batchnorm: overlapping arguments")
	ErrTooFewValues = errors.New("batchnorm: too few values per channel")
	ErrMomentum     = errors.New("batchnorm: invalid momentum")
	ErrMask         = errors.New("batchnorm: invalid mask")
	ErrGhost        = errors.New("batchnorm: invalid ghost batches")
	ErrStatistics   = errors.New("batchnorm: statistics in two forms")
	ErrRenorm       = errors.New("batchnorm: invalid limits of renormalization")
	ErrInvert       = errors.New("batchnorm: not invertible")
	ErrNoPass       = errors.New("batchnorm: no pass was begun, or one is under way")
	ErrRanks        = errors.New("batchnorm: the ranks disagree")
	ErrExchange     = errors.New("batchnorm: an exchange between ranks has failed")
)

// argError is an error of one of the kinds above with a message of its own.
type argError struct {
	kind error
	msg  string
}

func (e *argError) Error() string { return e.msg }
func (e *argError) Unwrap() error { return e.kind }

func fail(kind error, format string, args ...any) error {
	return &argError{kind, "batchnorm: " + singular(fmt.Sprintf(format, args...))}
}

// nouns are the nouns after numbers in messages.
var nouns = []string{"element", "channel", "sample", "position", "value", "dimension", "byte", "output"}

// singular puts every noun after the number 1 into the singular: "1 elements are"
// becomes "1 element is".
func singular(msg string) string {
	for _, noun := range nouns {
		one := "1 " + noun
		for from := 0; ; {
			i := strings.Index(msg[from:], one+"s")
			if i < 0 {
				break
			}
			i += from
			from = i + len(one)
			if i > 0 && strings.IndexByte("0123456789.-", msg[i-1]) >= 0 {
				continue // the end of another number
			}
			rest := msg[from+1:]
			if after, ok := strings.CutPrefix(rest, " are "); ok {
				rest = " is " + after
			}
			msg = msg[:from] + rest
		}
	}
	return msg
}
