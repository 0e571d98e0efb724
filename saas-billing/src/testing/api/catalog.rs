//! Products, prices, features.

use serde_json::{Value, json};

use super::{ApiError, Outcome, REFUSED, Request};
use crate::testing::{
    payload,
    world::{Pricing, SimFeature, SimPrice, SimProduct, SimTier},
};

impl Request<'_, '_> {
    pub(super) fn create_product(mut self) -> Outcome {
        let id = self.params.take("id").unwrap_or_else(|| self.engine.world.mint("prod"));
        let (name, metadata) = (self.params.need("name")?, self.params.map("metadata"));
        std::mem::take(&mut self.params).finish()?;
        if self.engine.world.products.contains_key(&id) {
            return Err(ApiError::new(400, REFUSED, "resource_already_exists", "Product already exists."));
        }
        let (created, features) = (self.engine.now, Vec::new());
        let product = SimProduct { id: id.clone(), name, active: true, created, metadata, features };
        let object = product_of(&product, self.engine.livemode);
        self.engine.world.products.insert(id, product);
        self.engine.announce("product.created", object.clone(), None);
        Ok(object)
    }

    pub(super) fn list_products(self) -> Outcome {
        let live = self.engine.livemode;
        let products = self.engine.world.products.values();
        let all = products.map(|product| (product.id.clone(), product_of(product, live))).collect();
        self.page("/v1/products", all)
    }

    pub(super) fn change_product(mut self, id: &str) -> Outcome {
        let (name, active) = (self.params.take("name"), self.params.flag("active")?);
        let metadata = self.params.map("metadata");
        std::mem::take(&mut self.params).finish()?;
        let live = self.engine.livemode;
        let product = self.engine.world.products.get_mut(id).ok_or_else(|| ApiError::not_found("product", id))?;
        product.name = name.unwrap_or_else(|| product.name.clone());
        product.active = active.unwrap_or(product.active);
        product.metadata.extend(metadata);
        let object = product_of(product, live);
        self.engine.announce("product.updated", object.clone(), None);
        Ok(object)
    }

    pub(super) fn attach_feature(mut self, id: &str) -> Outcome {
        let feature = self.params.need("entitlement_feature")?;
        std::mem::take(&mut self.params).finish()?;
        if !self.engine.world.features.contains_key(&feature) {
            return Err(ApiError::no_such("entitlements.feature", &feature, "entitlement_feature"));
        }
        let attachment = self.engine.world.mint("prodft");
        let product = self.engine.world.products.get_mut(id).ok_or_else(|| ApiError::not_found("product", id))?;
        if product.features.iter().any(|(_, known)| *known == feature) {
            let message = "This feature has already been attached to the product.";
            return Err(ApiError::new(400, REFUSED, "resource_already_exists", message));
        }
        product.features.push((attachment.clone(), feature.clone()));
        self.attachment(&attachment, &feature)
    }

    pub(super) fn list_product_features(self, id: &str) -> Outcome {
        let product = self.engine.world.products.get(id).ok_or_else(|| ApiError::not_found("product", id))?;
        let mut all = Vec::new();
        for (attachment, feature) in &product.features {
            all.push((attachment.clone(), self.attachment(attachment, feature)?));
        }
        self.page(&format!("/v1/products/{id}/features"), all)
    }

    pub(super) fn detach_feature(self, id: &str, attachment: &str) -> Outcome {
        let product = self.engine.world.products.get_mut(id).ok_or_else(|| ApiError::not_found("product", id))?;
        let at = product.features.iter().position(|(known, _)| known == attachment);
        product.features.remove(at.ok_or_else(|| ApiError::not_found("product_feature", attachment))?);
        Ok(json!({"id": attachment, "object": "product_feature", "deleted": true}))
    }

    fn attachment(&self, id: &str, feature: &str) -> Outcome {
        let live = self.engine.livemode;
        let feature = self.engine.world.features.get(feature);
        let feature = feature.ok_or_else(|| ApiError::not_found("entitlements.feature", id))?;
        Ok(json!({
            "id": id, "object": "product_feature", "livemode": live, "entitlement_feature": feature_of(feature, live)
        }))
    }

    pub(super) fn create_price(mut self) -> Outcome {
        let product = self.params.need("product")?;
        if !self.engine.world.products.contains_key(&product) {
            return Err(ApiError::no_such("product", &product, "product"));
        }
        let currency = self.params.need("currency")?;
        let interval = self.params.need("recurring[interval]")?;
        if !["day", "week", "month", "year"].contains(&interval.as_str()) {
            return Err(ApiError::invalid("parameter_invalid_string_enum", "recurring[interval]"));
        }
        let _ = self.params.word("recurring[usage_type]", &[("licensed", ()), ("metered", ())])?;
        let meter = self.params.take("recurring[meter]");
        if let Some(meter) = &meter
            && !self.engine.world.meters.contains_key(meter)
        {
            return Err(ApiError::no_such("billing.meter", meter, "recurring[meter]"));
        }
        let pricing = self.pricing()?;
        let (lookup_key, metadata) = (self.params.take("lookup_key"), self.params.map("metadata"));
        let takes_over = self.params.flag("transfer_lookup_key")? == Some(true);
        std::mem::take(&mut self.params).finish()?;
        if let Some(lookup_key) = &lookup_key {
            self.free_key(lookup_key, takes_over, None)?;
        }
        let id = self.engine.world.mint("price");
        let price = SimPrice {
            id: id.clone(),
            product,
            pricing,
            currency,
            interval,
            meter,
            lookup_key,
            active: true,
            metadata,
        };
        let object = payload::price(&price, self.engine.livemode);
        self.engine.world.prices.insert(id, price);
        self.engine.announce("price.created", object.clone(), None);
        Ok(object)
    }

    /// Takes a key from whoever has it, if that is wanted.
    fn free_key(&mut self, key: &str, takes_over: bool, but: Option<&str>) -> Result<(), ApiError> {
        let has = |price: &&mut SimPrice| price.lookup_key.as_deref() == Some(key) && but != Some(price.id.as_str());
        let Some(other) = self.engine.world.prices.values_mut().find(has) else { return Ok(()) };
        if !takes_over {
            let message = "A price already uses that lookup key.";
            return Err(ApiError::new(400, REFUSED, "resource_already_exists", message));
        }
        other.lookup_key = None;
        Ok(())
    }

    fn pricing(&mut self) -> Result<Pricing, ApiError> {
        let _ = self.params.word("billing_scheme", &[("per_unit", ()), ("tiered", ())])?;
        let mode = self.params.word("tiers_mode", &[("graduated", false), ("volume", true)])?;
        let Some(is_volume) = mode else {
            let unit = self.params.number("unit_amount")?.ok_or_else(|| ApiError::missing("unit_amount"))?;
            return Ok(Pricing::Unit(unit));
        };
        let mut tiers: Vec<SimTier> = Vec::new();
        for entry in self.params.entries("tiers") {
            let up_to = self.params.need(&format!("{entry}[up_to]"))?;
            let last = match up_to.as_str() {
                "inf" => None,
                number => Some(number.parse().map_err(|_| ApiError::invalid("parameter_invalid_integer", &entry))?),
            };
            let unit = self.params.number(&format!("{entry}[unit_amount]"))?.unwrap_or(0);
            let flat = self.params.number(&format!("{entry}[flat_amount]"))?.unwrap_or(0);
            tiers.push((last, unit, flat));
        }
        if tiers.last().is_none_or(|tier| tier.0.is_some()) {
            return Err(ApiError::invalid("parameter_invalid", "tiers"));
        }
        Ok(if is_volume { Pricing::Volume(tiers) } else { Pricing::Graduated(tiers) })
    }

    pub(super) fn list_prices(mut self) -> Outcome {
        let mut keys = Vec::new();
        for entry in self.params.entries("lookup_keys") {
            keys.extend(self.params.take(&entry));
        }
        let expands = self
            .params
            .entries("expand")
            .into_iter()
            .any(|entry| self.params.take(&entry).as_deref() == Some("data.tiers"));
        let product = self.params.take("product");
        let live = self.engine.livemode;
        let render = if expands { payload::expanded_price } else { payload::price };
        let fits = |price: &&SimPrice| {
            product.as_ref().is_none_or(|product| price.product == *product)
                && (keys.is_empty() || price.lookup_key.as_ref().is_some_and(|key| keys.contains(key)))
        };
        let prices = self.engine.world.prices.values().filter(fits);
        let all = prices.map(|price| (price.id.clone(), render(price, live))).collect();
        self.page("/v1/prices", all)
    }

    pub(super) fn update_price(mut self, id: &str) -> Outcome {
        let active = self.params.flag("active")?;
        let (lookup_key, metadata) = (self.params.take("lookup_key"), self.params.map("metadata"));
        let takes_over = self.params.flag("transfer_lookup_key")? == Some(true);
        std::mem::take(&mut self.params).finish()?;
        let live = self.engine.livemode;
        if !self.engine.world.prices.contains_key(id) {
            return Err(ApiError::not_found("price", id));
        }
        if let Some(lookup_key) = &lookup_key {
            self.free_key(lookup_key, takes_over, Some(id))?;
        }
        let price = self.engine.world.prices.get_mut(id).ok_or_else(|| ApiError::not_found("price", id))?;
        price.active = active.unwrap_or(price.active);
        price.metadata.extend(metadata);
        match lookup_key {
            // Empty text takes a value away.
            Some(key) if key.is_empty() => price.lookup_key = None,
            Some(key) => price.lookup_key = Some(key),
            None => {}
        }
        let object = payload::price(price, live);
        self.engine.announce("price.updated", object.clone(), None);
        Ok(object)
    }

    pub(super) fn create_feature(mut self) -> Outcome {
        let (lookup_key, name) = (self.params.need("lookup_key")?, self.params.need("name")?);
        let metadata = self.params.map("metadata");
        std::mem::take(&mut self.params).finish()?;
        if self.engine.world.features.values().any(|feature| feature.lookup_key == lookup_key) {
            return Err(ApiError::new(
                400,
                REFUSED,
                "resource_already_exists",
                "A feature already uses that lookup key.",
            ));
        }
        let id = self.engine.world.mint("feat");
        let feature = SimFeature { id: id.clone(), lookup_key, name, active: true, metadata };
        let object = feature_of(&feature, self.engine.livemode);
        self.engine.world.features.insert(id, feature);
        Ok(object)
    }

    pub(super) fn change_feature(mut self, id: &str) -> Outcome {
        let (name, active) = (self.params.take("name"), self.params.flag("active")?);
        let metadata = self.params.map("metadata");
        std::mem::take(&mut self.params).finish()?;
        let live = self.engine.livemode;
        let feature = self.engine.world.features.get_mut(id);
        let feature = feature.ok_or_else(|| ApiError::not_found("entitlements.feature", id))?;
        feature.name = name.unwrap_or_else(|| feature.name.clone());
        feature.active = active.unwrap_or(feature.active);
        feature.metadata.extend(metadata);
        Ok(feature_of(feature, live))
    }

    pub(super) fn list_features(mut self) -> Outcome {
        let (key, live) = (self.params.take("lookup_key"), self.engine.livemode);
        let fits = |feature: &&SimFeature| key.as_ref().is_none_or(|key| feature.lookup_key == *key);
        let features = self.engine.world.features.values().filter(fits);
        let all = features.map(|feature| (feature.id.clone(), feature_of(feature, live))).collect();
        self.page("/v1/entitlements/features", all)
    }
}

fn product_of(product: &SimProduct, livemode: bool) -> Value {
    json!({
        "id": product.id, "object": "product", "active": product.active, "created": product.created.timestamp(),
        "default_price": null, "description": null, "images": [], "livemode": livemode, "marketing_features": [],
        "metadata": product.metadata, "name": product.name, "package_dimensions": null, "shippable": null,
        "statement_descriptor": null, "tax_code": null, "type": "service", "unit_label": null,
        "updated": product.created.timestamp(), "url": null
    })
}

fn feature_of(feature: &SimFeature, livemode: bool) -> Value {
    json!({
        "id": feature.id, "object": "entitlements.feature", "active": feature.active, "livemode": livemode,
        "lookup_key": feature.lookup_key, "metadata": feature.metadata, "name": feature.name
    })
}
