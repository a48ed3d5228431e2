package main

import (
	"postroad/cmd/internal/config"
	"postroad/delivery/retry"
	"postroad/queue/address"
)

// explainedRetry is when mail for a recipient is tried again, and when it is given up, as far as that does not depend on its site and on what fails.
type explainedRetry struct {
	Schedule string `json:"schedule"`
	MaxAge   string `json:"max_age"` // of a mail that is tried on time

	isOwn bool // not that of all mail
}

// explainRetry says when the recipients' mail is tried again.
func (x *explanation) explainRetry(c *config.Config, sender address.Path) error {
	policy, err := c.RetryPolicy()
	if err != nil {
		return err
	}
	general := policy.Plan(retry.Query{Failure: retry.Other})
	for i := range x.Recipients {
		r := &x.Recipients[i]
		if r.isAnswered() {
			continue
		}
		plan := policy.Plan(retry.Query{Domain: r.domain(), Route: r.found.String(), Class: x.class, IsNull: sender.IsNull(), Failure: retry.Other})
		r.Retry = &explainedRetry{Schedule: plan.Schedule.String(), MaxAge: config.FormatDuration(plan.Lifetime()),
			isOwn: plan.Schedule.String() != general.Schedule.String() || plan.MaxAge != general.MaxAge}
	}
	return nil
}
