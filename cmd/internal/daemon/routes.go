package daemon

import (
	"fmt"

	"postroad/cmd/internal/routes"
	"postroad/delivery/smarthost"
)

// openRoutes puts the routes in force, and follows their file.
func (d *Daemon) openRoutes() (*routes.Live, error) {
	live, err := routes.New(routes.Options{Delivery: &d.c.Delivery, Logger: d.log.With("part", "routes")})
	if err != nil {
		return nil, fmt.Errorf("delivery.routes: %w", err)
	}
	d.onStart(live.Start)
	d.onStop(stageWork, "routes", opsLimit, live.Stop)
	d.watch(live.Conditions)
	d.facts = append(d.facts, func(facts map[string]string) { facts["routes"] = live.Fact() })
	return live, nil
}

// openSmartHosts has the secrets that routes name at hand for delivery.
func (d *Daemon) openSmartHosts() (*smarthost.Keeper, error) {
	keeper, err := smarthost.New(smarthost.Options{Source: d.secrets.SmartHosts(), Logger: d.log.With("part", "smart hosts")})
	if err != nil {
		return nil, err
	}
	d.onStop(stageWork, "smart hosts", opsLimit, keeper.Stop)
	d.watch(keeper.Conditions)
	return keeper, d.follow(topicCertificates, keeper)
}
